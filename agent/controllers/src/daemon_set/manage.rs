//! One daemon on every node that is to have one, none elsewhere.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::{COMPONENT, Site, Verdict, View, eligible};
use crate::{
    event::Event,
    hash::random_name,
    owned::{self, BURST},
    pod,
    reconcile::Context,
    revision::HASH_LABEL,
    write::{Outcome, Write},
};

const BACK_OFF_FIRST: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(15 * 60);

/// Pods to be deleted and made.
pub(super) fn pods(view: &View<'_>, cx: &mut Context<'_>, outcome: &mut Outcome) -> Vec<Write> {
    let (mut writes, mut missing) = (Vec::new(), Vec::new());
    for (node, site) in &view.nodes {
        match site.verdict {
            Verdict::Run if site.pods.is_empty() => missing.push(*node),
            Verdict::Run | Verdict::Stay => {
                replace_failed(view, node, site, cx, outcome, &mut writes);
                let surplus = surplus(view, site, cx);
                writes.extend(surplus.into_iter().map(|p| owned::delete(COMPONENT, view.set, p)));
            }
            Verdict::Leave => {
                let there = site.pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
                writes.extend(there.map(|p| owned::delete(COMPONENT, view.set, p)));
            }
        }
    }
    let strays = view.strays.iter().filter(|p| pod::is_active(p));
    writes.extend(strays.map(|p| owned::delete(COMPONENT, view.set, p)));
    writes.extend(missing.into_iter().map(|node| create(view, node, cx)));
    writes.truncate(BURST);
    writes
}

/// A daemon that failed goes, after a while; then there is none, and another one is made.
fn replace_failed(
    view: &View<'_>,
    node: &str,
    site: &Site<'_>,
    cx: &Context<'_>,
    outcome: &mut Outcome,
    writes: &mut Vec<Write>,
) {
    let ended = |p: &&&Pod| pod::is_finished(p) && p.metadata.deletion_timestamp.is_none();
    let key = (view.set.metadata.uid.clone().unwrap_or_default(), node.to_owned());
    for p in site.pods.iter().filter(ended) {
        let wait = cx.world.failures.get(&key).map(|f| f.left(BACK_OFF_FIRST, BACK_OFF_MAX, cx.now));
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            outcome.look_again(wait);
            continue;
        }
        let (namespace, name) = (
            p.metadata.namespace.as_deref().unwrap_or_default(),
            p.metadata.name.as_deref().unwrap_or_default(),
        );
        let message =
            format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
        writes.push(Write::Tell(Event::warning(COMPONENT, view.set, "FailedDaemonPod", message)));
        writes.push(owned::delete(COMPONENT, view.set, p));
    }
}

/// More than one: the oldest stays. While a surge replaces it there may be an old and a new one.
fn surplus<'a>(view: &View<'_>, site: &Site<'a>, cx: &Context<'_>) -> Vec<&'a Pod> {
    if super::rolling::bounds(view).0 == 0 {
        return site.running().skip(1).collect();
    }
    let (new, old): (Vec<&Pod>, Vec<&Pod>) = site.running().partition(|p| view.is_new(p));
    let mut surplus: Vec<&Pod> = new
        .iter()
        .chain(&old)
        .copied()
        .filter(|p| {
            let first = |list: &[&Pod]| list.first().is_some_and(|f| f.metadata.uid == p.metadata.uid);
            !first(&new) && !first(&old)
        })
        .collect();
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pod::is_ready(old) || view.is_available(new, cx))
    {
        surplus.push(old);
    }
    surplus
}

/// The daemon of a node.
pub(super) fn create(view: &View<'_>, node: &str, cx: &mut Context<'_>) -> Write {
    let base = format!("{}-", view.set.metadata.name.as_deref().unwrap_or_default());
    let mut p = owned::pod(view.set, &view.spec.template, random_name(&base, cx.rng));
    p.metadata.generate_name = Some(base);
    p.metadata.labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), view.hash.to_owned());
    let spec = p.spec.get_or_insert_default();
    spec.tolerations = Some(eligible::tolerations(spec));
    eligible::bind_to(spec, node);
    owned::create(COMPONENT, view.set, p)
}
