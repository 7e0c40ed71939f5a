//! `docs/api.md` says what is served. It is made from the descriptors and from what discovery tells.

use super::*;
use std::fmt::Write as _;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md");

const HEAD: &str = "# What the API serves

Made from the kinds' descriptors: `BRAMBLE_WRITE_DOCS=1 cargo nextest run -p apiserver docs_say` writes it anew.

Every kind has the verbs create, delete, deletecollection, get, list, patch, update and watch, its printer columns, short
names and categories, and upstream's defaults and validation. *Objects only* means that nothing in a cluster acts on
these objects yet: they are kept, checked and shown, and whoever makes one is told so in a warning. *Measured* objects have
get and list only: nothing is kept of them, the nodes are asked.

| group/version | kind | resource | short names | namespaced | subresources | |
|---|---|---|---|---|---|---|
";

const TAIL: &str = "
*Shown as well* means that the objects are those of another version, which both show.

## What is not there

Descriptions of fields in OpenAPI, conversion webhooks of custom kinds, mutating policies, API priority and fairness objects,
`resize`. Answers are JSON
or YAML; protobuf is read, not written. Leases are kept in memory, and empty after a new leader is chosen.

## Who is let in

A client certificate of the cluster's CA (CN is the user, O are the groups), a service account's token, or a token of
`--token-file`. Nobody is let in without one, but for `/healthz`, `/livez`, `/readyz` and `/version`.

Service account tokens are signed with ES256 by a key that is kept beside the objects, where no path leads.
`serviceaccounts/token` gives them out, bound to a pod, a Secret or a node if that is asked for, for ten minutes at least;
they are refused as soon as the account or what they are bound to is gone. `/openid/v1/jwks` and
`/.well-known/openid-configuration` tell others how to check them; TokenReview does it for them. Every namespace has the
account `default` and the ConfigMap `kube-root-ca.crt`, and every pod finds both, its token renewed in time, in
`/var/run/secrets/kubernetes.io/serviceaccount`.

## Who has a say in writes

ValidatingAdmissionPolicies and admission webhooks, for all operations on all kinds, subresources and connections to pods,
but for their own kinds and what the server itself does. Mutating webhooks are asked one after another, before an object is
checked, and once more if they want that (`reinvocationPolicy`) and others changed it since; validating ones at the same
time, after the policies. A webhook's `service` is reached at its ready endpoints, so it has to run in pods that the leader
has a route to. `caBundle` may hold the server's own certificate; without one the host's authorities are believed. Audit
annotations are dropped. A write waits for all of them for 34 seconds at most.

## What a namespace allows

Quotas are enforced by counting what is there at each create; two that would not both fit are not both let in. Pod
security levels (`pod-security.kubernetes.io/enforce` and `/warn`) are `baseline` and `restricted` of the newest version.
`pods/eviction` asks disruption budgets. The leader signs approved requests of the signers
`kubernetes.io/kube-apiserver-client`, `kubernetes.io/kube-apiserver-client-kubelet` and `kubernetes.io/kubelet-serving`.

## What pods, services and nodes serve

`proxy` reaches it with any method, streaming and upgraded connections too: `.../pods/[https:]NAME[:PORT]/proxy/PATH`,
services by the number or name of a port, at a ready endpoint, and nodes at the kubelet's port unless another is said. The
leader opens the connection. As upstream does, it does not check certificates of pods and services, and does not reach
loopback and link-local addresses. A `Location` is put below the path; links in HTML are not changed.

## The audit log

Off by default. With `log` under `[audit]` in `/etc/bramble/config.toml` (alone: `--audit-log-path`) every request that a
policy (`policy`, `--audit-policy-file`: audit.k8s.io/v1, all four levels) wants written down is appended to that file as
audit.k8s.io/v1 events, one JSON object a line; without a policy, the metadata of all. It grows to `max_size_mib` (10) and
is put aside under a number, `max_backups` (1) times: it takes no more room than that. Requests wait for a slow disk; what
a failing one does not take is counted in `apiserver_audit_error_total`. An event over 100 KiB goes without its objects. The
leader answers, so the leader's log has it; `sourceIPs` names the node that passed a stream on, if one did. Every answer
has an `Audit-Id`.

## The API alone

    bramble agent --roles control-plane --data-dir DIR [--bind 127.0.0.1:6443] [--service-cidr 10.0.0.0/24]
        [--token-file FILE] [--disable-admission NAME,...] [--no-controllers] [--no-scheduler]
        [--audit-log-path FILE] [--audit-policy-file FILE] [--audit-log-maxsize MIB] [--audit-log-maxbackup N]

serves the API, and runs the controllers and the scheduler unless told not to, with no Node, no kubelet and no pod
network: as any user, and as many beside one another as there are ports. `DIR/kubeconfig` is its administrator's. It is
ready when `/readyz` says `ok`, in well under a second; what it acknowledged is there when it starts anew on the same
folder, whatever ended it. `--token-file` has upstream's form, lines of `token,user,uid,\"group,group\"`;
`--disable-admission` takes upstream's names of plugins. On port 0 (`--bind 127.0.0.1:0`) it takes a free port, which the
kubeconfig names.
";

fn line(kind: &resources::Descriptor, told: &Value) -> String {
    let words = |list: &Value| {
        let list: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        list.join(", ")
    };
    let subs: Vec<&str> = told["subresources"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|sub| sub["subresource"].as_str())
        .collect();
    let note = match kind.kept_as() {
        Some(version) => format!("shown as well: {version}"),
        None if kind.measured => "measured".to_owned(),
        None if kind.idle => "objects only".to_owned(),
        None => String::new(),
    };
    let scope = if kind.namespaced { "yes" } else { "no" };
    let (version, subs) = (kind.api_version(), subs.join(", "));
    let names = words(&told["shortNames"]);
    format!("| {version} | {} | {} | {names} | {scope} | {subs} | {note} |\n", kind.kind, kind.plural)
}

#[tokio::test]
async fn docs_say_what_is_served() {
    let world = World::new().await;
    let mut page = HEAD.to_owned();
    let mut told = 0;
    for path in ["/api", "/apis"] {
        let mut ask = request(Method::GET, path, Body::empty());
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        ask.headers_mut().insert(header::ACCEPT, accept.parse().unwrap());
        let list = world.send(ask).await.ok(200);
        for group in list["items"].as_array().unwrap() {
            let name = text(&group["metadata"]["name"]);
            for version in group["versions"].as_array().unwrap() {
                for resource in version["resources"].as_array().unwrap() {
                    let (number, plural) = (text(&version["version"]), text(&resource["resource"]));
                    let mut kinds = [resources::all(), resources::measured()].into_iter().flatten();
                    match kinds.find(|kind| kind.is(&name, &number, &plural)) {
                        Some(kind) => {
                            page.push_str(&line(kind, resource));
                            told += 1;
                        }
                        None => {
                            let kind = text(&resource["responseKind"]["kind"]);
                            writeln!(
                                page,
                                "| {name}/{number} | {kind} | {plural} | | no | | create only: a question |"
                            )
                            .unwrap();
                        }
                    }
                }
            }
        }
    }
    page.push_str(TAIL);
    assert_eq!(told, resources::all().len() + resources::measured().len());
    if std::env::var_os("BRAMBLE_WRITE_DOCS").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let kept = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(kept == page, "docs/api.md is not what is served: its first lines say how to write it anew");
}
