//! Which pods a job needs just now.

use std::{collections::HashSet, time::Duration};

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::{COMPONENT, INDEX, TRACKING, View, index_of, is_indexed, release, waits_for_failure};
use crate::{
    hash::random_name,
    owned::{self, BURST},
    pod,
    reconcile::Context,
    replicas::victims,
    write::{Outcome, Write},
};

const ENVIRONMENT: &str = "JOB_COMPLETION_INDEX";
/// The wait after the first failure.
pub(super) const BACK_OFF_FIRST: Duration = Duration::from_secs(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(600);

/// Pods to be made or deleted.
pub(super) fn pods(view: &View<'_>, cx: &mut Context<'_>, outcome: &mut Outcome) -> Vec<Write> {
    let active = view.active.len();
    let want = wanted(view);
    let surplus = surplus(view, active.saturating_sub(want), cx);
    if !surplus.is_empty() {
        return surplus.into_iter().flat_map(|p| withdraw(view, p)).collect();
    }
    let leaving = if waits_for_failure(view.spec) { view.terminating } else { 0 };
    let missing = want.saturating_sub(active + leaving).min(BURST);
    if missing == 0 || view.suspended() {
        return Vec::new();
    }
    let key = (view.job.metadata.uid.clone().unwrap_or_default(), String::new());
    let wait = cx.world.failures.get(&key).map(|f| f.left(BACK_OFF_FIRST, BACK_OFF_MAX, cx.now));
    if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
        outcome.look_again(wait);
        return Vec::new();
    }
    if is_indexed(view.spec) {
        let next = pending(view, missing);
        next.into_iter().map(|index| create(view, Some(index), cx)).collect()
    } else {
        (0..missing).map(|_| create(view, None, cx)).collect()
    }
}

/// How many pods there should be at a time.
fn wanted(view: &View<'_>) -> usize {
    let done = view.tally.succeeded;
    match view.completions() {
        _ if view.suspended() => 0,
        Some(completions) => completions.saturating_sub(done).min(view.parallelism()),
        // Once one has succeeded the others may end, but none is made.
        None if done > 0 => view.active.len(),
        None => view.parallelism(),
    }
}

/// Pods to be deleted: those nobody needs, and as many more as are asked for.
fn surplus<'a>(view: &View<'a>, at_least: usize, cx: &Context<'_>) -> Vec<&'a Pod> {
    let mut chosen: Vec<&Pod> = Vec::new();
    let mut rest = view.active.clone();
    if is_indexed(view.spec) {
        let mut seen = HashSet::new();
        let below = view.completions().unwrap_or(0);
        rest.sort_by_key(|p| p.metadata.creation_timestamp.clone());
        (rest, chosen) = rest.into_iter().partition(|p| {
            index_of(p).is_some_and(|i| {
                usize::try_from(i).is_ok_and(|i| i < below)
                    && !view.tally.completed.contains(i)
                    && seen.insert(i)
            })
        });
    }
    let more = at_least.saturating_sub(chosen.len());
    chosen.extend(victims(rest, more, cx));
    chosen.truncate(BURST);
    chosen
}

/// A pod that is not needed does not count, however it ends.
fn withdraw(view: &View<'_>, p: &Pod) -> Vec<Write> {
    let let_go = super::is_tracked(p).then(|| release(p));
    let_go.into_iter().chain([owned::delete(COMPONENT, view.job, p)]).collect()
}

/// The first numbers nobody works on.
fn pending(view: &View<'_>, count: usize) -> Vec<u32> {
    let strict = waits_for_failure(view.spec);
    let works = |p: &&&Pod| pod::is_active(p) || (strict && !pod::is_finished(p));
    let taken: HashSet<u32> = view.pods.iter().filter(works).filter_map(|p| index_of(p)).collect();
    let below = view.spec.completions.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    (0..below).filter(|i| !taken.contains(i) && !view.tally.completed.contains(*i)).take(count).collect()
}

fn create(view: &View<'_>, index: Option<u32>, cx: &mut Context<'_>) -> Write {
    let job = view.job.metadata.name.as_deref().unwrap_or_default();
    let base = index.map_or_else(|| format!("{job}-"), |index| format!("{job}-{index}-"));
    let mut p = owned::pod(view.job, &view.spec.template, random_name(&base, cx.rng));
    p.metadata.generate_name = Some(base);
    p.metadata.finalizers.get_or_insert_default().push(TRACKING.to_owned());
    if let Some(index) = index {
        let number = index.to_string();
        p.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), number.clone());
        p.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), number);
        if let Some(spec) = &mut p.spec {
            spec.hostname = Some(format!("{job}-{index}"));
            spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(tell_index);
        }
    }
    owned::create(COMPONENT, view.job, p)
}

/// A container learns its pod's number, unless it has set that itself.
fn tell_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|e| e.name == ENVIRONMENT) {
        return;
    }
    let field =
        ObjectFieldSelector { api_version: None, field_path: format!("metadata.annotations['{INDEX}']") };
    env.push(EnvVar {
        name: ENVIRONMENT.to_owned(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
    });
}
