//! The everyday commands, typed as people type them, with the oldest and the newest stock kubectl: a table of lines, each
//! with what must be in its output.

use std::fmt::Write as _;

use tests::{Lab, NEW_KUBECTL, OLD_KUBECTL};

/// Whose line it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Both,
    Old,
    New,
}
use By::{Both, New, Old};

/// A line that must succeed, and what it must say.
struct Line(By, &'static str, &'static [&'static str]);

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\ndata: {color: red, size: big}";
const WEB: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {set: mine}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: luxas/nginx-test
        ports: [{containerPort: 80}]";
const TOOL: &str = "apiVersion: v1
kind: Pod
metadata: {name: tool}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: tool
    image: busybox
    stdin: true
    stdinOnce: true
    command: [sh, -c, 'echo I am ready; exec cat']";

/// Objects in words: create, get, describe, label, annotate, patch, edit, replace, delete.
const OBJECTS: &[Line] = &[
    Line(Both, "kubectl create configmap a --from-literal=x=1 --from-literal=y=2", &["configmap/a created"]),
    Line(Both, "kubectl get configmap a", &["NAME", "DATA", "a      2"]),
    Line(Both, "kubectl get cm a -o jsonpath='{.data.x}{.data.y}'", &["12"]),
    Line(Both, "kubectl describe configmap a", &["Name:         a", "x:\n----\n1"]),
    Line(Both, "kubectl label configmap a tier=db", &["configmap/a labeled"]),
    Line(Both, "kubectl get configmap -l tier=db -o name", &["configmap/a"]),
    Line(Both, "kubectl annotate configmap a note=yes", &["configmap/a annotated"]),
    Line(
        Both,
        "kubectl patch configmap a --type=merge -p '{\"data\":{\"x\":\"9\"}}'",
        &["configmap/a patched"],
    ),
    Line(
        Both,
        "kubectl patch configmap a --type=json -p '[{\"op\":\"remove\",\"path\":\"/data/y\"}]'",
        &["configmap/a patched"],
    ),
    Line(Both, "kubectl get cm a -o jsonpath='{.data}'", &["{\"x\":\"9\"}"]),
    Line(Both, "EDITOR='sed -i s/x:.*/x:\\ \"edited\"/' kubectl edit configmap a", &["configmap/a edited"]),
    Line(Both, "kubectl get cm a -o go-template='{{.data.x}}'", &["edited"]),
    Line(
        Both,
        "kubectl get cm a -o yaml | sed s/edited/replaced/ | kubectl replace -f -",
        &["configmap/a replaced"],
    ),
    Line(Both, "kubectl create secret generic s --from-literal=k=v", &["secret/s created"]),
    Line(Both, "kubectl get secret s -o jsonpath='{.data.k}' | base64 -d", &["v"]),
    Line(
        Both,
        "kubectl create namespace other-$CLIENT && kubectl delete ns other-$CLIENT",
        &["created", "deleted"],
    ),
    Line(
        Both,
        "kubectl create quota q --hard=pods=5; kubectl describe quota q",
        &["Name:       q", "Resource"],
    ),
    Line(Both, "kubectl delete configmap a", &["configmap \"a\" deleted"]),
];

/// apply in its forms, diff, and what comes of them.
const APPLY: &[Line] = &[
    Line(Both, "kubectl apply -f conf.yaml", &["configmap/conf created"]),
    Line(Both, "kubectl apply -f conf.yaml", &["configmap/conf unchanged"]),
    Line(Both, "kubectl diff -f conf.yaml && echo no difference", &["no difference"]),
    Line(
        Both,
        "sed s/red/blue/ conf.yaml | kubectl diff -f - ; echo $?",
        &["-  color: red", "+  color: blue", "\n1\n"],
    ),
    Line(Both, "sed s/red/blue/ conf.yaml | kubectl apply -f -", &["configmap/conf configured"]),
    Line(Both, "kubectl get cm conf -o jsonpath='{.data.color}'", &["blue"]),
    Line(
        Both,
        "printf 'apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: conf}\\ndata: {size: big}\\n' | kubectl apply -f -",
        &["configured"],
    ),
    Line(Both, "kubectl get cm conf -o jsonpath='{.data}'", &["{\"size\":\"big\"}"]),
    Line(
        Both,
        "kubectl apply set-last-applied -f conf.yaml; kubectl apply view-last-applied -f conf.yaml",
        &["color: red"],
    ),
    Line(
        Both,
        "kubectl apply --server-side -f conf.yaml --force-conflicts",
        &["configmap/conf serverside-applied"],
    ),
    Line(
        Both,
        "sed s/red/green/ conf.yaml | kubectl diff --server-side -f - ; echo $?",
        &["+  color: green", "\n1\n"],
    ),
    Line(
        Both,
        "kubectl apply --server-side --field-manager=eve -f conf.yaml",
        &["configmap/conf serverside-applied"],
    ),
    Line(
        Both,
        "sed s/red/green/ conf.yaml | kubectl apply --server-side --field-manager=eve -f - 2>&1 || true",
        &["Apply failed with 1 conflict: conflict with \"kubectl\": .data.color"],
    ),
    Line(
        New,
        "kubectl get cm conf -o yaml --show-managed-fields",
        &["manager: eve", "operation: Apply", "f:color: {}"],
    ),
    Line(
        Both,
        "kubectl apply -f web.yaml --dry-run=server",
        &["deployment.apps/web created (server dry run)"],
    ),
    Line(Both, "kubectl apply -f web.yaml", &["deployment.apps/web created"]),
    Line(Both, "kubectl diff -f web.yaml && echo no difference", &["no difference"]),
    Line(
        Both,
        "sed 's/replicas: 1/replicas: 2/' web.yaml | kubectl apply -f -",
        &["deployment.apps/web configured"],
    ),
    Line(
        Both,
        "sed 's/replicas: 1/replicaz: 2/' web.yaml | kubectl apply -f - 2>&1 || true",
        &["unknown field", "replicaz"],
    ),
    Line(
        Both,
        "sed 's/ image:/ imagee:/' web.yaml | kubectl apply -f - 2>&1 || true",
        &["unknown field", "imagee"],
    ),
    Line(
        Both,
        "sed 's/name: conf/name: gone, labels: {set: mine}/' conf.yaml | kubectl apply -f -",
        &["configmap/gone created"],
    ),
    Line(New, "kubectl apply --prune -l set=mine -f web.yaml", &["configmap/gone pruned"]),
    // By itself it looks for versions that no server of today has.
    Line(
        Old,
        "kubectl apply --prune -l set=mine -f web.yaml --prune-whitelist=core/v1/ConfigMap --prune-whitelist=apps/v1/Deployment",
        &["configmap/gone pruned"],
    ),
];

/// Workloads from the command line.
const WORKLOADS: &[Line] = &[
    Line(Both, "kubectl rollout status deployment web --timeout=120s", &["successfully rolled out"]),
    Line(Both, "kubectl get pods -l app=web", &["1/1", "Running"]),
    Line(Both, "kubectl scale deployment web --replicas=2", &["deployment.apps/web scaled"]),
    Line(Both, "kubectl wait --for=condition=Available deployment/web --timeout=120s", &["condition met"]),
    Line(
        Both,
        "kubectl autoscale deployment web --min=1 --max=3 --cpu-percent=80; kubectl get hpa web",
        &["horizontalpodautoscaler.autoscaling/web autoscaled", "Deployment/web", "80%"],
    ),
    Line(Both, "kubectl expose deployment web --port=80", &["service/web exposed"]),
    Line(Both, "kubectl get service web -o wide", &["ClusterIP", "80/TCP", "app=web"]),
    Line(Both, "kubectl set env deployment/web A=b", &["deployment.apps/web env updated"]),
    Line(Both, "kubectl set image deployment/web web=luxas/nginx-test:latest", &["image updated"]),
    Line(
        Both,
        "kubectl set resources deployment/web --limits=memory=64Mi && kubectl get deployment web -o yaml",
        &["resource requirements updated", "memory: 64Mi", "image: luxas/nginx-test:latest", "value: b"],
    ),
    Line(Both, "kubectl rollout history deployment web", &["REVISION  CHANGE-CAUSE\n1 "]),
    Line(
        Both,
        "kubectl rollout history deployment web --revision=1",
        &["revision #1", "Image:\tluxas/nginx-test\n"],
    ),
    Line(Both, "kubectl rollout undo deployment web --to-revision=1", &["deployment.apps/web rolled back"]),
    Line(Both, "kubectl rollout pause deployment web", &["deployment.apps/web paused"]),
    Line(Both, "kubectl rollout resume deployment web", &["deployment.apps/web resumed"]),
    Line(Both, "kubectl rollout restart deployment web", &["deployment.apps/web restarted"]),
    Line(Both, "kubectl rollout status deployment web --timeout=120s", &["successfully rolled out"]),
    Line(
        Both,
        "kubectl get all -o wide",
        &["pod/web-", "service/web", "deployment.apps/web", "replicaset.apps/web-"],
    ),
    Line(
        Both,
        // Each of the two commands would choose a pod of its own.
        "pod=$(kubectl get pods -l app=web -o name | head -n 1); kubectl exec $pod -- sh -c 'echo to the log >/proc/1/fd/1' && \
         timeout 20 sh -c \"until kubectl logs $pod --tail=5 | grep 'to the log'; do sleep 0.2; done\"",
        &["to the log"],
    ),
    Line(Both, "kubectl exec deployment/web -- cat /etc/hostname", &["web-"]),
    Line(
        Both,
        "kubectl port-forward deployment/web 1808:80 >forward.log & \
         for _ in $(seq 100); do curl -s localhost:1808 && break; sleep 0.1; done; kill $!; cat forward.log",
        &["WELCOME TO NGINX", "Forwarding from 127.0.0.1:1808 -> 80"],
    ),
    Line(
        Both,
        "kubectl drain node1 --pod-selector=app=web --delete-emptydir-data --timeout=60s; kubectl uncordon node1",
        &["node/node1 cordoned", "evicting pod", " evicted", "node/node1 uncordoned"],
    ),
    Line(Both, "kubectl rollout status deployment web --timeout=120s", &["successfully rolled out"]),
    Line(Both, "kubectl top nodes", &["NAME", "CPU(cores)", "MEMORY(bytes)", "node1 "]),
    Line(Both, "kubectl top pods -l app=web", &["NAME", "CPU(cores)", "web-", "m ", "Mi "]),
    Line(Both, "kubectl top pods --containers", &["POD", "NAME", "web-", " web ", "Mi "]),
    Line(Both, "kubectl describe deployment web", &["Replicas:", "StrategyType:           RollingUpdate"]),
    Line(Both, "kubectl delete deployment,service,hpa web", &["\"web\" deleted"]),
    Line(
        Both,
        "kubectl create job j --image=luxas/nginx-test -- true && kubectl wait --for=condition=complete job/j --timeout=120s",
        &["job.batch/j created", "condition met"],
    ),
    Line(Both, "kubectl get job j && kubectl describe job j", &["1/1", "Completions:", "SuccessfulCreate"]),
    // The old one makes those of a version that no server of today has.
    Line(
        New,
        "kubectl create cronjob c --image=luxas/nginx-test --schedule='0 0 * * *' -- true && kubectl get cronjob c",
        &["cronjob.batch/c created", "0 0 * * *"],
    ),
    Line(
        Both,
        "kubectl run one --image=luxas/nginx-test --restart=Never --dry-run=client -o yaml",
        &["kind: Pod", "name: one"],
    ),
];

/// Into a pod, and beside it.
const INTO: &[Line] = &[
    Line(
        Both,
        "kubectl apply -f tool.yaml && kubectl wait --for=condition=Ready pod/tool --timeout=120s",
        &["pod/tool created", "condition met"],
    ),
    Line(Both, "kubectl logs tool", &["I am ready"]),
    Line(Both, "kubectl exec tool -- sh -c 'echo to err >&2; exit 3'; echo code $?", &["to err", "code 3"]),
    Line(
        Both,
        "kubectl cp conf.yaml tool:/tmp/there && kubectl exec tool -- cat /tmp/there && kubectl cp tool:/tmp/there back && cmp conf.yaml back && echo same",
        &["color: red", "same"],
    ),
    // Its end of input ends the container, which starts again.
    Line(Both, "echo from outside | kubectl attach -i tool", &["from outside"]),
    Line(
        Both,
        "echo go | kubectl run one --image=busybox -i --rm --restart=Never --pod-running-timeout=120s -- sh -c 'read go; echo from one'",
        &["from one", "pod \"one\" deleted"],
    ),
    Line(Both, "kubectl wait --for=condition=Ready pod/tool --timeout=120s", &["condition met"]),
    Line(
        New,
        "echo go | kubectl debug tool -i --image=busybox -c first --target=tool -- sh -c 'read go; tr \"\\0\" \" \" </proc/1/cmdline; hostname'",
        &["cat tool"],
    ),
    Line(
        New,
        "kubectl debug tool --image=busybox -c second -- sleep 1000; \
         kubectl wait --for=jsonpath='{.status.ephemeralContainerStatuses[?(@.name==\"second\")].state.running.startedAt}' pod/tool --timeout=60s",
        &["condition met"],
    ),
    Line(New, "kubectl exec tool -c second -- ps", &["1 root     sleep 1000"]),
    Line(New, "kubectl logs tool -c first", &["cat tool"]),
    Line(
        New,
        "kubectl describe pod tool",
        &["Ephemeral Containers:\n  first:", "Exit Code:    0", "  second:"],
    ),
    Line(
        Both,
        "kubectl debug tool --copy-to=copy --image=busybox --container=beside -- sleep 1000; kubectl wait --for=condition=Ready pod/copy --timeout=120s; kubectl get pod copy",
        &["condition met", "2/2     Running"],
    ),
    Line(
        Both,
        "echo go | kubectl debug node/node1 -i --image=busybox -- sh -c 'read go; cat /host/etc/hostname'",
        &["Creating debugging pod node-debugger-node1-", "\nnode1\n"],
    ),
    Line(Both, "kubectl get events", &["LAST SEEN", "Started", "pod/tool", "Pulled"]),
    Line(New, "kubectl events --for pod/tool", &["LAST SEEN", "Started", "Pod/tool"]),
    Line(
        Both,
        "kubectl delete pods --all --wait=false && kubectl wait --for=delete pod/tool pod/copy --timeout=60s; kubectl get pods",
        &["pod \"tool\" deleted", "No resources found"],
    ),
];

/// What a server is asked about itself.
const ABOUT: &[Line] = &[
    Line(Both, "kubectl version", &["Server Version"]),
    Line(Both, "kubectl cluster-info", &["is running at"]),
    Line(Both, "kubectl get --raw /readyz", &["ok"]),
    Line(Both, "kubectl api-resources", &["deployments", "po ", "NAMESPACED", "PodMetrics"]),
    Line(
        Both,
        "kubectl api-resources --api-group=apps -o name",
        &["deployments.apps\n", "statefulsets.apps\n"],
    ),
    Line(Both, "kubectl api-versions", &["apps/v1", "v1"]),
    Line(Both, "kubectl explain pod", &["KIND:", "VERSION:", "spec\t<"]),
    Line(Both, "kubectl explain deployment.spec.strategy.rollingUpdate", &["maxSurge", "maxUnavailable"]),
    Line(Both, "kubectl explain pod.spec --recursive", &["containers", "livenessProbe", "matchExpressions"]),
    Line(Both, "kubectl explain pod.spec.containers.image", &["FIELD", "image", "<string>"]),
    Line(Both, "kubectl auth can-i create pods", &["yes"]),
    Line(Both, "kubectl auth can-i --list", &["Resources", "*.*", "[*]"]),
    Line(New, "kubectl auth whoami", &["Username", "system:masters"]),
    Line(
        Both,
        "kubectl create clusterrole x-$CLIENT --verb=get --resource=pods --dry-run=client -o yaml >role.yaml && kubectl auth reconcile -f role.yaml",
        &["clusterrole.rbac.authorization.k8s.io/x-", " reconciled"],
    ),
    Line(
        Both,
        "kubectl create role r --verb=get --resource=pods; kubectl create rolebinding b --role=r --user=eve",
        &["created"],
    ),
    Line(
        Both,
        "kubectl auth can-i get pods --as=eve && kubectl auth can-i delete pods --as=eve || true",
        &["yes", "no"],
    ),
    Line(
        Both,
        "kubectl cordon node1; kubectl get node node1; kubectl uncordon node1",
        &["cordoned", "SchedulingDisabled", "uncordoned"],
    ),
    Line(
        Both,
        "kubectl taint nodes node1 a=b:PreferNoSchedule; kubectl taint nodes node1 a-",
        &["tainted", "untainted"],
    ),
    Line(
        Both,
        "mkdir -p kust && cp conf.yaml kust && printf 'resources: [conf.yaml]\\nnamePrefix: my-\\n' > kust/kustomization.yaml && kubectl kustomize kust",
        &["name: my-conf"],
    ),
    Line(Both, "kubectl apply -k kust", &["configmap/my-conf"]),
];

#[test]
fn the_everyday_commands() {
    let lab = Lab::up("kubectl", "--nodes 1");
    let mut faults = String::new();
    for (client, kubectl, by) in [("new", NEW_KUBECTL, New), ("old", OLD_KUBECTL, Old)] {
        let folder = format!("/root/{client}");
        let start =
            format!("mkdir -p {folder}; cd {folder}; export CLIENT={client} BRAMBLE_KUBECTL={kubectl}");
        lab.ok(1, &format!("mkdir -p {folder}"));
        for (name, text) in [("conf", MAP), ("web", WEB), ("tool", TOOL)] {
            lab.write(&format!("{client}/{name}.yaml"), text);
        }
        lab.ok(1, &format!("{start}; kubectl create namespace {client}; kubectl config set-context --current --namespace={client}"));
        let lines = [OBJECTS, APPLY, WORKLOADS, INTO, ABOUT].into_iter().flatten();
        for Line(_, line, needles) in lines.filter(|line| line.0 == Both || line.0 == by) {
            let said = lab.types(1, &format!("{start}; {line}"));
            let all = format!("{}{}", said.out, said.err);
            let missing: Vec<&&str> = needles.iter().filter(|needle| !all.contains(**needle)).collect();
            if said.code != 0 || !missing.is_empty() {
                // One fault does not hide the next.
                writeln!(faults, "{client}: {line}\ncode {}, without {missing:?}\n{all}", said.code)
                    .expect("a string takes all");
            }
        }
    }
    assert!(faults.is_empty(), "{faults}");
}
