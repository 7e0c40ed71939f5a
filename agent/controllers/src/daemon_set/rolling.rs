//! How far a rolling update may go just now.

use k8s_openapi::api::core::v1::Pod;

use super::{COMPONENT, Site, Verdict, View, manage};
use crate::{
    owned::{self, number, share},
    reconcile::Context,
    write::Write,
};

/// maxSurge and maxUnavailable, of the nodes that are to have a daemon; never both zero.
pub(super) fn bounds(view: &View<'_>) -> (usize, usize) {
    let rolling = view.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let total = number(view.wanted());
    let part =
        |value: Option<&_>| usize::try_from(value.map_or(0, |value| share(value, total, true))).unwrap_or(0);
    let surge = part(rolling.and_then(|r| r.max_surge.as_ref()));
    let unavailable = part(rolling.and_then(|r| r.max_unavailable.as_ref()));
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// The new and the old daemon of a node; `None` if there are several of one sort.
fn sorts<'a>(view: &View<'_>, site: &Site<'a>) -> Option<(Option<&'a Pod>, Option<&'a Pod>)> {
    let there = site.pods.iter().copied().filter(|p| p.metadata.deletion_timestamp.is_none());
    let (new, old): (Vec<_>, Vec<_>) = there.partition(|p| view.is_new(p));
    (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
}

/// Old daemons to be deleted, and new ones beside old ones.
pub(super) fn roll(view: &View<'_>, cx: &mut Context<'_>) -> Vec<Write> {
    let (surge, unavailable) = bounds(view);
    if surge > 0 { beside(view, surge, cx) } else { instead(view, unavailable, cx) }
}

/// Old ones go first; those that serve nobody at once.
fn instead(view: &View<'_>, most: usize, cx: &Context<'_>) -> Vec<Write> {
    let (mut out, mut useless, mut candidates) = (0_usize, Vec::new(), Vec::new());
    for site in view.nodes.values().filter(|site| site.verdict == Verdict::Run) {
        match sorts(view, site) {
            Some((Some(new), None)) => out += usize::from(!view.is_available(new, cx)),
            Some((None, Some(old))) if view.is_available(old, cx) => candidates.push(old),
            Some((None, Some(old))) => {
                // It counts as well: what takes its place is not there yet.
                out += 1;
                useless.push(old);
            }
            _ => out += 1,
        }
    }
    candidates.truncate(most.saturating_sub(out));
    useless.extend(candidates);
    useless.into_iter().map(|p| owned::delete(COMPONENT, view.set, p)).collect()
}

/// New ones come first, so many at a time; where the old one serves nobody, at once.
fn beside(view: &View<'_>, most: usize, cx: &mut Context<'_>) -> Vec<Write> {
    let (mut out, mut at_once, mut candidates, mut gone) = (0_usize, Vec::new(), Vec::new(), Vec::new());
    for (node, site) in view.nodes.iter().filter(|(_, site)| site.verdict == Verdict::Run) {
        match sorts(view, site) {
            Some((_, None)) => {}
            Some((None, Some(old))) if view.is_available(old, cx) => candidates.push(*node),
            Some((None, Some(_))) => at_once.push(*node),
            Some((Some(new), Some(old))) if view.is_available(new, cx) => gone.push(old),
            Some((Some(_), Some(_))) | None => out += 1,
        }
    }
    candidates.truncate(most.saturating_sub(out));
    at_once.extend(candidates);
    let mut writes: Vec<Write> = gone.into_iter().map(|p| owned::delete(COMPONENT, view.set, p)).collect();
    writes.extend(at_once.into_iter().map(|node| manage::create(view, node, cx)));
    writes
}
