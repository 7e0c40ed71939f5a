//! Images for a cluster without internet: archives that are loaded, and what is refused.

use tests::Lab;

#[test]
fn archives_are_loaded() {
    let lab = Lab::up("images", "--nodes 1");
    let out = lab.images();
    // Formats: docker-save gzipped, OCI layout.
    let docker = out.join("hypriot_rpi-nano-httpd.docker.tar");
    let oci = out.join("bramble_web.oci.tar");
    let said = lab
        .ok(1, &format!("gzip -c {} > /root/i.tar.gz && kube-config load /root/i.tar.gz", docker.display()));
    assert!(said.contains("Loaded image") && said.contains("rpi-nano-httpd"), "{said}");
    let said = lab.ok(1, &format!("kube-config load {}", oci.display()));
    assert!(said.contains("bramble/web"), "{said}");
    // What was loaded runs without a registry.
    lab.stop_registry();
    lab.ok(
        1,
        "kubectl run loaded --image=hypriot/rpi-nano-httpd --image-pull-policy=IfNotPresent --restart=Never",
    );
    lab.says(1, "kubectl get pod loaded", "Running", 60);
    // And what was not says that the registry is away.
    lab.ok(1, "kubectl run away --image=bramble/curl --restart=Never");
    let text = lab.says(1, "kubectl describe pod away", "Failed to pull image", 60);
    assert!(text.contains("refused"), "{text}");

    // Archives that are none, and none for this machine.
    lab.ok(1, "echo nonsense > /root/bad.tar");
    let error = lab.fails(1, "kube-config load /root/bad.tar");
    assert!(error.contains("bad.tar"), "{error}");
    let error =
        lab.fails(1, &format!("kube-config load {}", out.join("bramble_arm-single.oci.tar").display()));
    assert!(error.contains("amd64") || error.contains("x86_64") || error.contains("arm64"), "{error}");
    let error = lab.fails(1, "kube-config load /root/nowhere.tar");
    assert!(error.contains("nowhere.tar"), "{error}");
}

#[test]
fn a_full_disk_loses_nothing() {
    let lab = Lab::up("full", "--nodes 1");
    lab.ok(1, "kubectl create configmap before --from-literal=a=b");
    // A small file system in the store's place, as a card that is full: moved there while the agent is down.
    lab.ok(
        1,
        "cp -a /var/lib/bramble/raft /root/raft && mount -t tmpfs -o size=24m tmpfs /var/lib/bramble/raft && \
         cp -a /root/raft/. /var/lib/bramble/raft/",
    );
    lab.act(1, "--kill-agent");
    lab.until("the API is back", 30, |lab| {
        (lab.types(1, "kubectl get configmap before").code == 0).then_some(())
    });
    lab.types(1, "head -c 100m /dev/zero > /var/lib/bramble/raft/filler");
    let refused = lab.until("a write is refused", 60, |lab| {
        let said = lab.types(1, "kubectl --request-timeout=5s create configmap c-$(date +%N) --from-literal=a=$(head -c 20000 /dev/zero | tr '\\0' x)");
        (said.code != 0).then_some(said.err)
    });
    assert!(!refused.is_empty());
    lab.ok(1, "kubectl get configmap before");
    lab.ok(1, "rm /var/lib/bramble/raft/filler");
    lab.until("writes are taken again", 60, |lab| {
        (lab.types(1, "kubectl --request-timeout=5s create configmap after --from-literal=a=b").code == 0
            || lab.types(1, "kubectl get configmap after").code == 0)
            .then_some(())
    });
    lab.ok(1, "kubectl get configmap before after");
}
