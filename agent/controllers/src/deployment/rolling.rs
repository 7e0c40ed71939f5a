//! How far a rolling update may go just now.

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::{Rollout, annotation, available, new_replica_set, scale, size};
use crate::write::Write;

/// The next step of a rolling update: first the new up, as far as the surge allows, then the old down, as far as
/// availability allows.
pub(super) fn roll(rollout: &Rollout<'_>) -> Vec<Write> {
    let Some(current) = rollout.current else { return vec![new_replica_set(rollout, new_size(rollout))] };
    let next = new_size(rollout);
    if next != size(current) {
        return vec![scale(rollout, current, next)];
    }
    shrink_old(rollout, current)
}

/// Size of the new replica set.
fn new_size(rollout: &Rollout<'_>) -> i32 {
    let present = rollout.current.map_or(0, size);
    if present >= rollout.want {
        return rollout.want;
    }
    let total: i32 = rollout.all().map(size).sum();
    let room = (rollout.maximum() - total).max(0);
    present + room.min(rollout.want - present)
}

fn shrink_old(rollout: &Rollout<'_>, current: &ReplicaSet) -> Vec<Write> {
    let total: i32 = rollout.all().map(size).sum();
    let new_unavailable = size(current) - available(current);
    let mut room = total - rollout.minimum() - new_unavailable;
    let mut sizes: Vec<i32> = rollout.old.iter().map(|rs| size(rs)).collect();
    // Replicas that serve nobody go first.
    for (rs, left) in rollout.old.iter().zip(&mut sizes) {
        let down = (*left - available(rs)).min(room).max(0);
        *left -= down;
        room -= down;
    }
    let serving: i32 = rollout.all().map(available).sum();
    let mut spare = (serving - rollout.minimum()).min(room);
    for (rs, left) in rollout.old.iter().zip(&mut sizes) {
        // What is left beyond the available ones is already waiting for its turn above.
        let down = (*left).min(available(rs)).min(spare).max(0);
        *left -= down;
        spare -= down;
    }
    rollout
        .old
        .iter()
        .zip(sizes)
        .filter(|(rs, left)| size(rs) != *left)
        .map(|(rs, left)| scale(rollout, rs, left))
        .collect()
}

/// The deployment was resized in the middle of a rollout, or while paused: every replica set gets its share.
pub(super) fn scale_proportionally(rollout: &Rollout<'_>) -> Vec<Write> {
    let active: Vec<&ReplicaSet> = rollout.all().filter(|rs| size(rs) > 0).collect();
    if let [] | [_] = active[..] {
        let only = active.first().copied().or(rollout.current);
        let Some(rs) = only else { return Vec::new() };
        return if size(rs) == rollout.want && annotated(rs, rollout.want) {
            Vec::new()
        } else {
            vec![scale(rollout, rs, rollout.want)]
        };
    }
    // The new one has arrived: the old ones are no longer needed.
    if let Some(current) = rollout.current
        && size(current) == rollout.want
        && available(current) == rollout.want
    {
        let old = rollout.old.iter().filter(|rs| size(rs) > 0);
        return old.map(|rs| scale(rollout, rs, 0)).collect();
    }
    if rollout.recreate() {
        return Vec::new();
    }
    shares(rollout, active)
}

fn shares(rollout: &Rollout<'_>, mut active: Vec<&ReplicaSet>) -> Vec<Write> {
    let total: i32 = active.iter().map(|rs| size(rs)).sum();
    let allowed = if rollout.want > 0 { rollout.maximum() } else { 0 };
    let mut remaining = allowed - total;
    // Largest first, and of equals the newest when growing, the oldest when shrinking.
    active.sort_by_key(|rs| std::cmp::Reverse(size(rs)));
    let mut sizes: Vec<i32> = Vec::with_capacity(active.len());
    for rs in &active {
        let before =
            annotation(&rs.metadata, super::MAXIMUM).and_then(|s| s.parse().ok()).unwrap_or(total).max(1);
        let exact = f64::from(size(rs)) * f64::from(allowed) / f64::from(before);
        #[allow(clippy::cast_possible_truncation)]
        let change = exact.round() as i32 - size(rs);
        let change = if remaining > 0 { change.clamp(0, remaining) } else { change.clamp(remaining, 0) };
        remaining -= change;
        sizes.push(size(rs) + change);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + remaining).max(0);
    }
    active
        .into_iter()
        .zip(sizes)
        .filter(|(rs, to)| size(rs) != *to || !annotated(rs, rollout.want))
        .map(|(rs, to)| scale(rollout, rs, to))
        .collect()
}

fn annotated(rs: &ReplicaSet, want: i32) -> bool {
    annotation(&rs.metadata, super::DESIRED) == Some(want.to_string().as_str())
}
