//! What the 2016 talk explains: replication controllers, services by name, volumes, labels, scaling, self-healing.

use tests::Lab;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: ReplicationController
metadata: {name: web}
spec:
  replicas: 2
  selector: {app: web}
  template:
    metadata: {labels: {app: web, tier: front}}
    spec:
      containers:
      - name: web
        image: luxas/nginx-test
        ports: [{containerPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: my-nginx}
spec:
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: pair, labels: {app: pair}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: shared, emptyDir: {}}]
  containers:
  - name: writer
    image: bramble/curl
    command: [sh, -c, "echo from the writer > /out/note; exec sleep 1000000"]
    volumeMounts: [{name: shared, mountPath: /out}]
  - name: reader
    image: bramble/curl
    command: [sh, -c, "until [ -s /in/note ]; do sleep 0.1; done; cat /in/note; exec sleep 1000000"]
    volumeMounts: [{name: shared, mountPath: /in, readOnly: true}]
"#;

#[test]
fn what_the_talk_explains() {
    let lab = Lab::up("work", "--nodes 2");
    lab.write("all.yaml", MANIFESTS);
    let made = lab.ok(1, "kubectl apply -f /root/all.yaml");
    assert!(
        made.contains("replicationcontroller/web created") && made.contains("pod/pair created"),
        "{made}"
    );
    lab.until("two replicas", 90, |lab| (lab.pods("app=web").len() == 2).then_some(()));

    // Two containers share an emptyDir, one of them read-only.
    lab.says(1, "kubectl logs pair -c reader", "from the writer", 60);
    let error = lab.fails(1, "kubectl exec pair -c reader -- sh -c 'echo x > /in/note'");
    assert!(error.to_lowercase().contains("read-only"), "{error}");

    // Services answer by name, from a pod and from a node.
    for name in ["my-nginx", "my-nginx.default.svc.cluster.local"] {
        lab.says(
            1,
            &format!("kubectl exec pair -c writer -- curl -s --max-time 5 {name}"),
            "WELCOME TO NGINX",
            15,
        );
        lab.says(2, &format!("curl -s --max-time 5 {name}"), "WELCOME TO NGINX", 15);
    }
    // An address of the machine's network is not mistaken for one of ours.
    let error = lab.types(1, "kubectl exec pair -c writer -- curl -sS --max-time 5 no-such-service");
    assert!(error.err.contains("Could not resolve host"), "{error:?}");

    // Labels select.
    let names = lab.ok(1, "kubectl get pods -l tier=front -o name");
    assert_eq!(names.lines().count(), 2, "{names}");
    assert_eq!(lab.ok(1, "kubectl get pods -l 'app in (pair)' -o name"), "pod/pair\n");

    // Scaling.
    lab.ok(1, "kubectl scale rc web --replicas=4");
    lab.until("four replicas", 60, |lab| (lab.pods("app=web").len() == 4).then_some(()));
    lab.ok(1, "kubectl scale rc web --replicas=2");
    lab.until("two replicas again", 60, |lab| (lab.pods("app=web").len() == 2).then_some(()));

    // A pod deleted by hand comes back under another name.
    let before = lab.pods("app=web");
    lab.ok(1, &format!("kubectl delete pod {}", before[0]));
    let after = lab.until("two replicas, one new", 60, |lab| {
        let pods = lab.pods("app=web");
        (pods.len() == 2 && !pods.contains(&before[0])).then_some(pods)
    });
    assert!(after.contains(&before[1]), "{before:?} {after:?}");

    // A rolling update and its undoing.
    lab.ok(1, "kubectl create deployment roll --image=luxas/nginx-test --replicas=2");
    lab.ok(1, "kubectl rollout status deployment/roll --timeout=90s");
    lab.ok(1, "kubectl set image deployment/roll nginx-test=hypriot/rpi-nano-httpd");
    lab.ok(1, "kubectl rollout status deployment/roll --timeout=90s");
    let image = "kubectl get pods -l app=roll -o jsonpath='{.items[*].spec.containers[0].image}'";
    lab.until("only new pods", 60, |lab| {
        let images = lab.ok(1, image);
        (images == "hypriot/rpi-nano-httpd hypriot/rpi-nano-httpd").then_some(())
    });

    // A namespace takes everything in it along.
    lab.ok(1, "kubectl create namespace gone && kubectl -n gone create configmap c --from-literal=a=b");
    lab.ok(1, "kubectl delete namespace gone --timeout=60s");
    assert!(lab.fails(1, "kubectl -n gone get configmap c").contains("not found"));
}
