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

const KINDS: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: works}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: c, image: bramble/curl, command: [sh, -c, "echo index $JOB_COMPLETION_INDEX on $(hostname)"]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: breaks}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: c, image: bramble/curl, command: [sh, -c, "exit 3"]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: yearly}
spec:
  schedule: "@yearly"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: OnFailure
          containers:
          - {name: c, image: bramble/curl, command: [echo, a happy new year]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: luxas/nginx-test}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{port: 80}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: luxas/nginx-test}
"#;

/// Jobs, cron jobs, daemon sets and stateful sets.
#[test]
fn what_ends_what_is_everywhere_and_what_has_a_name() {
    let lab = Lab::up("kinds", "--nodes 2");
    lab.write("kinds.yaml", KINDS);
    let made = lab.types(1, "kubectl apply -f /root/kinds.yaml");
    assert_eq!(made.code, 0, "{made:?}");
    assert!(!made.err.contains("nothing in this cluster acts"), "{made:?}");

    jobs(&lab);
    lab.ok(1, "kubectl create job now --from=cronjob/yearly");
    lab.ok(1, "kubectl wait --for=condition=complete job/now --timeout=60s");
    assert_eq!(lab.ok(1, "kubectl logs job/now"), "a happy new year\n");
    daemon_set(&lab);
    stateful_set(&lab);
}

fn jobs(lab: &Lab) {
    lab.ok(1, "kubectl wait --for=condition=complete job/works --timeout=90s");
    let works = lab.get("job works");
    assert_eq!(works["status"]["succeeded"], 3, "{}", works["status"]);
    assert_eq!(works["status"]["completedIndexes"], "0-2");
    let logs = lab.ok(1, "kubectl logs -l job-name=works --tail=-1 --prefix=false");
    for index in 0..3 {
        assert!(logs.contains(&format!("index {index} on works-{index}")), "{logs}");
    }
    let pods = lab.get("pods -l job-name=works");
    let all = pods["items"].as_array().expect("a list");
    let free = |p: &serde_json::Value| p["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    assert!(all.len() == 3 && all.iter().all(free), "{pods}");

    lab.ok(1, "kubectl wait --for=condition=failed job/breaks --timeout=90s");
    let breaks = lab.get("job breaks");
    assert_eq!(breaks["status"]["failed"], 1, "{}", breaks["status"]);
    let reasons = lab.ok(1, "kubectl get job breaks -o jsonpath='{.status.conditions[*].reason}'");
    assert_eq!(reasons, "BackoffLimitExceeded BackoffLimitExceeded");
    // A job goes with its pods, whatever holds them.
    lab.ok(1, "kubectl delete job works breaks --timeout=60s");
    lab.until("their pods are gone", 60, |lab| {
        let pods = lab.ok(1, "kubectl get pods -l 'job-name in (works,breaks)' -o name");
        pods.is_empty().then_some(())
    });
    // So does one whose pod is still running.
    lab.ok(1, "kubectl create job sleeps --image=bramble/curl -- sh -c 'trap exit TERM; while sleep 0.2; do :; done'");
    lab.until("it runs", 60, |lab| (lab.pods("job-name=sleeps").len() == 1).then_some(()));
    lab.ok(1, "kubectl delete job sleeps --cascade=foreground --timeout=90s");
    assert_eq!(lab.ok(1, "kubectl get pods -l job-name=sleeps -o name"), "");
}

fn daemon_set(lab: &Lab) {
    lab.ok(1, "kubectl rollout status ds/everywhere --timeout=120s");
    let nodes = "kubectl get pods -l app=everywhere -o jsonpath='{.items[*].spec.nodeName}'";
    let mut on: Vec<String> = lab.ok(1, nodes).split(' ').map(str::to_owned).collect();
    on.sort();
    let mut all: Vec<String> =
        lab.ok(1, "kubectl get nodes -o name").lines().map(|l| l.replace("node/", "")).collect();
    all.sort();
    assert!(on == all && all.len() == 2, "{on:?} {all:?}");
    let images = "kubectl get pods -l app=everywhere -o jsonpath='{.items[*].spec.containers[0].image}'";
    lab.ok(1, "kubectl set image ds/everywhere c=hypriot/rpi-nano-httpd");
    lab.ok(1, "kubectl rollout status ds/everywhere --timeout=120s");
    assert_eq!(lab.ok(1, images), "hypriot/rpi-nano-httpd hypriot/rpi-nano-httpd");
    let history = lab.ok(1, "kubectl rollout history ds/everywhere");
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    lab.ok(1, "kubectl rollout undo ds/everywhere");
    lab.ok(1, "kubectl rollout status ds/everywhere --timeout=120s");
    assert_eq!(lab.ok(1, images), "luxas/nginx-test luxas/nginx-test");
}

fn stateful_set(lab: &Lab) {
    lab.ok(1, "kubectl rollout status sts/web --timeout=120s");
    let start = |name: &str| {
        let pod = lab.get(&format!("pod {name}"));
        pod["metadata"]["creationTimestamp"].as_str().expect("a time").to_owned()
    };
    assert!(start("web-0") <= start("web-1"));
    // Each has a name of its own, by which the others reach it.
    for (name, other) in [("web-0", "web-1"), ("web-1", "web-0")] {
        assert_eq!(lab.ok(1, &format!("kubectl exec {name} -- hostname")), format!("{name}\n"));
        let line = format!("kubectl exec {name} -- curl -s --max-time 5 {other}.db");
        lab.says(1, &line, "WELCOME TO NGINX", 15);
    }
    lab.ok(1, "kubectl scale sts/web --replicas=1");
    lab.until("the last one is gone", 60, |lab| (lab.pods("app=db") == ["web-0"]).then_some(()));
}
