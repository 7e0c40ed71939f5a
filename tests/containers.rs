//! Containers on a node: logs, exec, limits, ends of all kinds, and an agent that is killed under them.

use tests::Lab;

fn pod(name: &str, image: &str, script: &str, more: &str) -> String {
    let script = serde_json::to_string(script).expect("a string");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
         terminationGracePeriodSeconds: 2\n  containers:\n  - name: main\n    image: {image}\n    \
         command: [sh, -c, {script}]\n    {more}\n"
    )
}

fn apply(lab: &Lab, manifest: &str) {
    lab.write("pod.yaml", manifest);
    lab.ok(1, "kubectl apply -f /root/pod.yaml");
}

/// `reason exitCode` once the container has ended.
fn ended(lab: &Lab, name: &str) -> String {
    lab.until(&format!("{name} ended"), 60, |lab| {
        // The agent may be down at the moment: that is one of the tests.
        let text = lab.types(1, &format!("kubectl get pod {name} -o json")).out;
        let pod: serde_json::Value = serde_json::from_str(&text).ok()?;
        let end = pod["status"]["containerStatuses"][0]["state"]["terminated"].clone();
        end.is_object().then(|| format!("{} {}", end["reason"].as_str().unwrap_or(""), end["exitCode"]))
    })
}

#[test]
fn containers_of_all_kinds() {
    let lab = Lab::up("containers", "--nodes 1");
    ends(&lab);
    streams(&lab);
    terminals(&lab);
    limits(&lab);
    agent_killed(&lab);
    images(&lab);
}

fn ends(lab: &Lab) {
    apply(lab, &pod("ok", "busybox", "echo done", ""));
    assert_eq!(ended(lab, "ok"), "Completed 0");
    apply(lab, &pod("fortytwo", "busybox", "exit 42", ""));
    assert_eq!(ended(lab, "fortytwo"), "Error 42");
    // The first process of a container is immune to its own signals: a child dies.
    // (`$$` is one `$` in a Kubernetes command.)
    apply(lab, &pod("shot", "busybox", "sh -c 'kill -9 $$$$'; exit $?", ""));
    assert_eq!(ended(lab, "shot"), "Error 137");
    let hog = "x=a; while true; do x=$x$x; done";
    apply(lab, &pod("hog", "busybox", hog, "resources: {limits: {memory: 32Mi}}"));
    assert_eq!(ended(lab, "hog"), "OOMKilled 137");
    lab.ok(1, "kubectl delete pod ok fortytwo shot hog");

    // Restarts, with back-off.
    let manifest =
        pod("again", "busybox", "exit 1", "").replace("restartPolicy: Never", "restartPolicy: Always");
    apply(lab, &manifest);
    lab.says(1, "kubectl get pod again", "CrashLoopBackOff", 60);
    lab.ok(1, "kubectl delete pod again");
}

fn streams(lab: &Lab) {
    let script = "trap 'echo asked to end; exit 0' TERM; i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done";
    apply(lab, &pod("talker", "busybox", script, ""));
    lab.says(1, "kubectl logs talker", "line 3", 60);
    let followed = lab.types(1, "timeout 3 kubectl logs -f talker --tail=1").out;
    assert!(followed.lines().count() > 5, "{followed}");
    let said = lab.types(1, "kubectl exec talker -- sh -c 'echo to stdout; echo to stderr >&2; exit 7'");
    assert_eq!((said.code, said.out.as_str()), (7, "to stdout\n"), "{said:?}");
    assert!(said.err.contains("to stderr"), "{said:?}");
    let said = lab.ok(1, "echo through stdin | kubectl exec -i talker -- cat");
    assert_eq!(said, "through stdin\n");
    // A terminal, as a person has it.
    let said =
        lab.ok(1, "script -qec 'kubectl exec -it talker -- sh -c \"tty; stty size\"' /dev/null </dev/null");
    assert!(said.contains("/dev/"), "{said}");
    // The whole old protocol too.
    let old = lab
        .ok(1, "BRAMBLE_KUBECTL=/usr/lib/bramble/kubectl-old kubectl exec talker -- echo by the old client");
    assert_eq!(old, "by the old client\n");
    lab.ok(1, "kubectl delete pod talker");
}

/// A terminal as a person has it: of a size, which may change, and to a shell that has been running for a while.
fn terminals(lab: &Lab) {
    let script = "echo ready; while read line; do echo \"got <$line>\"; done; echo the end";
    let more = "stdin: true\n    stdinOnce: true";
    apply(lab, &pod("shell", "busybox", script, more));
    lab.says(1, "kubectl logs shell", "ready", 60);
    // Resized while the command waits; the new size reaches it as a signal.
    lab.write(
        "exec.sh",
        "stty rows 24 cols 80; tty > /root/tty\n\
         exec kubectl exec -it shell -- sh -c 'look() { stty size; [ \"$(stty size)\" != \"33 111\" ] || exit 0; }; \
         trap look WINCH; echo waiting; while true; do sleep 0.1; done'",
    );
    lab.write(
        "person.sh",
        "script -qfec 'sh /root/exec.sh' /root/typed </dev/null >/dev/null &\n\
         while ! grep -q waiting /root/typed; do sleep 0.1; done\n\
         stty -F $(cat /root/tty) rows 33 cols 111; wait; cat /root/typed",
    );
    let said = lab.ok(1, "timeout 60 sh /root/person.sh");
    assert!(said.contains("33 111"), "{said}");
    // The container's own input and output; with its input its end comes, too.
    let said = lab.ok(1, "printf 'one\\ntwo\\n' | timeout 60 kubectl attach -i shell");
    assert!(said.contains("got <one>") && said.contains("got <two>") && said.contains("the end"), "{said}");
    assert_eq!(ended(lab, "shell"), "Completed 0");
    lab.ok(1, "kubectl delete pod shell");
}

fn limits(lab: &Lab) {
    let more = "resources: {requests: {cpu: 250m}, limits: {cpu: 500m, memory: 64Mi}}";
    apply(lab, &pod("small", "busybox", "exec sleep 1000000", more));
    lab.says(1, "kubectl get pod small", "Running", 60);
    let id = lab.ok(1, "kubectl get pod small -o jsonpath='{.status.containerStatuses[0].containerID}'");
    let id = id.rsplit('/').next().expect("an id").to_owned();
    let read =
        |file: &str| lab.ok(1, &format!("cat $(find /sys/fs/cgroup -path '*{id}/{file}' | head -n 1)"));
    if lab.types(1, "test -e /sys/fs/cgroup/cgroup.controllers").code == 0 {
        assert_eq!(read("memory.max").trim(), "67108864");
        assert_eq!(read("cpu.max").trim(), "50000 100000");
    } else {
        assert_eq!(read("memory.limit_in_bytes").trim(), "67108864");
        assert_eq!(read("cpu.cfs_quota_us").trim(), "50000");
        assert_eq!(read("cpu.shares").trim(), "256");
    }
}

/// Containers outlive the agent; what ended meanwhile is known to the next one.
fn agent_killed(lab: &Lab) {
    apply(lab, &pod("short", "busybox", "while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 33", ""));
    lab.says(1, "kubectl get pod short", "Running", 60);
    let started =
        "kubectl get pod small -o jsonpath='{.status.containerStatuses[0].state.running.startedAt}'";
    let before = lab.ok(1, started);
    lab.ok(1, "kubectl exec short -- sh -c '(sleep 0.5; touch /tmp/end) >/dev/null 2>&1 &'");
    lab.act(1, "--kill-agent");
    assert_eq!(ended(lab, "short"), "Error 33");
    assert_eq!(lab.ok(1, started), before);
    assert_eq!(lab.ok(1, "kubectl exec small -- echo still here"), "still here\n");
    let restarts =
        lab.ok(1, "kubectl get pod small -o jsonpath='{.status.containerStatuses[0].restartCount}'");
    assert_eq!(restarts, "0");
    lab.ok(1, "kubectl delete pod short small");
}

fn images(lab: &Lab) {
    // No image for this machine: both architectures are named.
    lab.ok(1, "kubectl run arm --image=bramble/arm-only --restart=Never");
    let events = lab.says(1, "kubectl describe pod arm", "amd64", 60);
    assert!(events.contains("arm"), "{events}");
    lab.says(1, "kubectl get pod arm", "rrImagePull", 60);
    // A registry that is not there.
    lab.ok(1, "kubectl run nowhere --image=192.168.255.9:5000/x --restart=Never");
    lab.says(1, "kubectl get pod nowhere", "ImagePull", 90);
    lab.ok(1, "kubectl run missing --image=bramble/no-such-image --restart=Never");
    lab.says(1, "kubectl describe pod missing", "not found", 60);
    lab.ok(1, "kubectl delete pod arm nowhere missing");
    // By digest.
    let id = lab.ok(1, "kubectl run byname --image=busybox --restart=Never --command -- sleep 100000");
    assert!(id.contains("created"));
    lab.says(1, "kubectl get pod byname", "Running", 60);
    let image = lab.ok(1, "kubectl get pod byname -o jsonpath='{.status.containerStatuses[0].imageID}'");
    let digest = image.rsplit('@').next().expect("a digest").to_owned();
    assert!(digest.starts_with("sha256:"), "{image}");
    lab.ok(
        1,
        &format!("kubectl run bydigest --image=busybox@{digest} --restart=Never --command -- sleep 100000"),
    );
    lab.says(1, "kubectl get pod bydigest", "Running", 60);
}
