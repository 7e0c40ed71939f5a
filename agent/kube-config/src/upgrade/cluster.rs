//! `kube-config upgrade --cluster`: all nodes, one after the other.
//!
//! The plan ([`super::plan`]) says what comes next; here it is done, through the Kubernetes API only: a node is cordoned
//! and drained as `kubectl drain` does, asked by annotation, and awaited. It uncordons itself when it is done. Nothing
//! is remembered here: who stops this command can start it again, and it goes on where it was. After a failure it is
//! another attempt, which the number behind the id tells: who is done stays done, who failed is asked again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, EvictParams, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::plan::{self, Next};
use super::record::{ANSWER, Answer, Progress, REQUEST, Request};
use crate::wire::{self, Info};

/// Between two looks at the nodes: reboots take minutes, and the API itself may be away meanwhile.
const LOOK: Duration = Duration::from_secs(3);
/// Longest for one node, its trial included.
const NODE: Duration = Duration::from_secs(45 * 60);
/// Longest until a node's pods are gone.
const DRAIN: Duration = Duration::from_secs(10 * 60);
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Upgrades every node to the bundle at an address. `id` tells this upgrade from others: the same bundle gives the same.
pub(crate) async fn run(socket: &Path, from: &str, id: String) -> Result<()> {
    if !from.starts_with("http://") && !from.starts_with("https://") {
        bail!("{from}: every node fetches the bundle itself, so give an http or https address");
    }
    let info = wire::call(socket, "GET", "/info", &(), |_| {}).await?;
    let info: Info = serde_json::from_value(info).context("what the agent says of itself")?;
    if info.role == "none" {
        bail!("this node is in no cluster");
    }
    let mut cluster =
        Cluster { client: client().await?, info, bundle: id.clone(), id, from: from.to_owned() };
    let nodes = Api::<Node>::all(cluster.client.clone()).list(&ListParams::default()).await?;
    let answers: Vec<Answer> = nodes.items.iter().filter_map(|node| annotation(node, ANSWER)).collect();
    cluster.id = attempt(&cluster.bundle, &answers);
    cluster.run().await
}

async fn client() -> Result<kube::Client> {
    let path = crate::kubectl::KUBECONFIG;
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| path.to_owned())?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // An error means that somebody installed one before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(kube::Client::try_from(config)?)
}

struct Cluster {
    client: kube::Client,
    info: Info,
    /// What all attempts at this bundle have in common, and the present one.
    bundle: String,
    id: String,
    from: String,
}

impl Cluster {
    async fn run(&self) -> Result<()> {
        let mut waiting: Option<(String, Instant)> = None;
        loop {
            let nodes = match self.nodes().await {
                Ok(nodes) => nodes,
                // The leader may be the one that reboots.
                Err(_) if waiting.as_ref().is_some_and(|(_, since)| since.elapsed() < NODE) => {
                    sleep(LOOK).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            match plan::next(&nodes) {
                Next::Done => {
                    println!("All {} nodes run it.", nodes.len());
                    return Ok(());
                }
                Next::Stop(why) => bail!("{why}. The nodes after it were not touched"),
                Next::Upgrade(name) => {
                    self.upgrade(&name).await.with_context(|| name.clone())?;
                    if name == self.info.node {
                        println!("{name}: this node is the last; it reboots by itself.");
                    }
                    waiting = Some((name, Instant::now()));
                }
                Next::Wait(name) => {
                    let since = match &waiting {
                        Some((before, since)) if *before == name => *since,
                        _ => Instant::now(),
                    };
                    if since.elapsed() > NODE {
                        bail!("{name}: not back after {} minutes", NODE.as_secs() / 60);
                    }
                    waiting = Some((name, since));
                    sleep(LOOK).await;
                }
            }
        }
    }

    async fn nodes(&self) -> Result<Vec<plan::Node>> {
        let nodes = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await?;
        Ok(nodes.items.iter().map(|node| self.view(node)).collect())
    }

    fn view(&self, node: &Node) -> plan::Node {
        let name = node.metadata.name.clone().unwrap_or_default();
        let request: Option<Request> = annotation(node, REQUEST);
        let answer: Option<Answer> = annotation(node, ANSWER);
        plan::Node {
            ready: is_ready(node),
            voter: self.info.voters.contains(&name),
            here: name == self.info.node,
            asked: request.is_some_and(|request| request.id == self.id),
            answer: answer
                .filter(|answer| {
                    answer.id == self.id
                        || bundle_of(&answer.id) == self.bundle && answer.progress == Progress::Done
                })
                .map(|answer| answer.progress),
            name,
        }
    }

    /// Cordon, drain, ask.
    async fn upgrade(&self, name: &str) -> Result<()> {
        let nodes = Api::<Node>::all(self.client.clone());
        let node = nodes.get(name).await?;
        let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        println!("{name}: draining");
        let cordon = json!({"spec": {"unschedulable": true}});
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(cordon)).await.context("cordoning")?;
        self.drain(name).await.context("draining")?;
        println!("{name}: upgrading");
        let request = Request { id: self.id.clone(), from: self.from.clone(), uncordon: !cordoned };
        let annotations = BTreeMap::from([(REQUEST, serde_json::to_string(&request)?)]);
        let ask = json!({"metadata": {"annotations": annotations}});
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(ask)).await.context("asking it")?;
        Ok(())
    }

    async fn drain(&self, node: &str) -> Result<()> {
        let deadline = Instant::now() + DRAIN;
        loop {
            let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
            let pods = Api::<Pod>::all(self.client.clone()).list(&here).await?;
            let left: Vec<&Pod> = pods.items.iter().filter(|pod| must_go(pod)).collect();
            if left.is_empty() {
                return Ok(());
            }
            for pod in &left {
                self.evict(pod).await?;
            }
            if Instant::now() > deadline {
                let names: Vec<&str> = left.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
                return Err(anyhow!("these pods do not leave: {}", names.join(", ")));
            }
            sleep(LOOK).await;
        }
    }

    async fn evict(&self, pod: &Pod) -> Result<()> {
        let (Some(name), Some(namespace)) = (&pod.metadata.name, &pod.metadata.namespace) else {
            return Ok(());
        };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        match Api::<Pod>::namespaced(self.client.clone(), namespace)
            .evict(name, &EvictParams::default())
            .await
        {
            // Gone by itself; or its disruption budget says not now.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 429 => Ok(()),
            other => other.map(drop).with_context(|| format!("evicting {namespace}/{name}")),
        }
    }
}

/// The id of an upgrade to a bundle: the attempt under way, or the next one if that has failed.
fn attempt(bundle: &str, answers: &[Answer]) -> String {
    let of_bundle = answers.iter().filter(|answer| bundle_of(&answer.id) == bundle);
    let number = |answer: &Answer| answer.id.rsplit_once('#').and_then(|(_, n)| n.parse().ok()).unwrap_or(1);
    let last: u32 = of_bundle.clone().map(number).max().unwrap_or(1);
    let failed = |answer: &Answer| number(answer) == last && matches!(answer.progress, Progress::Failed(_));
    let now = if of_bundle.clone().any(failed) { last.saturating_add(1) } else { last };
    format!("{bundle}#{now}")
}

fn bundle_of(id: &str) -> &str {
    id.rsplit_once('#').map_or(id, |(bundle, _)| bundle)
}

fn annotation<T: serde::de::DeserializeOwned>(node: &Node, name: &str) -> Option<T> {
    serde_json::from_str(node.metadata.annotations.as_ref()?.get(name)?).ok()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// As `kubectl drain --ignore-daemonsets`: what is bound to the node, or has ended, stays.
fn must_go(pod: &Pod) -> bool {
    let mirror = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR));
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let daemon = owners.iter().any(|owner| owner.kind == "DaemonSet" && owner.controller == Some(true));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !mirror && !daemon && !matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_pods_must_go() {
        let pod = |value| serde_json::from_value::<Pod>(value).unwrap();
        assert!(must_go(&pod(json!({"status": {"phase": "Running"}}))));
        assert!(!must_go(&pod(json!({"status": {"phase": "Succeeded"}}))));
        assert!(!must_go(&pod(json!({"metadata": {"annotations": {MIRROR: "x"}}}))));
        let owner = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true});
        assert!(!must_go(&pod(json!({"metadata": {"ownerReferences": [owner]}}))));
    }

    #[test]
    fn what_failed_is_tried_again() {
        let answer = |id: &str, progress| Answer {
            id: id.to_owned(),
            boot: "x".to_owned(),
            slot: "a".to_owned(),
            progress,
        };
        let failed = || Progress::Failed("no space".to_owned());
        assert_eq!(attempt("2-ab", &[]), "2-ab#1");
        assert_eq!(attempt("2-ab", &[answer("2-ab#1", Progress::Running)]), "2-ab#1");
        assert_eq!(attempt("2-ab", &[answer("1-cd#1", failed())]), "2-ab#1");
        let answers = [answer("2-ab#1", Progress::Done), answer("2-ab#1", failed())];
        assert_eq!(attempt("2-ab", &answers), "2-ab#2");
        // That one is under way, or is done.
        let answers = [answer("2-ab#1", failed()), answer("2-ab#2", Progress::Done)];
        assert_eq!(attempt("2-ab", &answers), "2-ab#2");
    }

    #[test]
    fn annotations_of_others_are_nothing() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"annotations": {REQUEST: "not json"}}})).unwrap();
        assert_eq!(annotation::<Request>(&node, REQUEST), None);
    }
}
