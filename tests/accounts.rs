//! A pod calls the API as its service account, with the token that the node gave it.

use tests::Lab;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  serviceAccountName: reader
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: bramble/curl, command: [sleep, "1000000"]}
"#;

/// What a program in a cluster does: everything it needs is in its environment and in one folder.
const CALL: &str = r#"
D=/var/run/secrets/kubernetes.io/serviceaccount
curl -s --cacert $D/ca.crt -H "Authorization: Bearer $(cat $D/token)" -o /dev/null -w "%{http_code}" \
    https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/namespaces/$(cat $D/namespace)/"#;

#[test]
fn a_pod_is_somebody() {
    let lab = Lab::up("accounts", "--nodes 2");
    lab.write("all.yaml", MANIFESTS);
    lab.ok(1, "kubectl apply -f /root/all.yaml");
    lab.ok(1, "kubectl wait pod client --for=condition=Ready --timeout=90s");
    let call = |what: &str| {
        let line = format!("{CALL}{what}").replace('\'', "'\\''");
        lab.ok(1, &format!("kubectl exec client -- sh -c '{line}'"))
    };
    assert_eq!(call("configmaps"), "200");
    assert_eq!(call("secrets"), "403");
    // By name as well: the certificate is for that, too.
    let line = "curl -s --cacert /var/run/secrets/kubernetes.io/serviceaccount/ca.crt -o /dev/null -w %{http_code} https://kubernetes.default.svc/version";
    assert_eq!(lab.ok(1, &format!("kubectl exec client -- {line}")), "200");
    // A pod on a node that does not lead has its token from that one's leader.
    lab.ok(1, "kubectl create deployment spread --image=bramble/curl --replicas=4 -- sleep 1000000");
    lab.available("spread", 4);
    // The token is the pod's: it ends with it.
    let token = lab.ok(1, "kubectl exec client -- cat /var/run/secrets/kubernetes.io/serviceaccount/token");
    let ask = format!(
        "curl -sk -H 'Authorization: Bearer {token}' -o /dev/null -w '%{{http_code}}' https://127.0.0.1:6443/api/v1/namespaces/default/configmaps"
    );
    assert_eq!(lab.ok(1, &ask), "200");
    lab.ok(1, "kubectl delete pod client");
    assert_eq!(lab.ok(1, &ask), "401");
}
