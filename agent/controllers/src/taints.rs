//! Taints and tolerations, as far as pods are moved because of them.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub(crate) const NO_EXECUTE: &str = "NoExecute";
pub(crate) const NO_SCHEDULE: &str = "NoSchedule";

/// How long a pod bears a taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bears {
    /// Says nothing about it.
    Unsaid,
    /// For a while.
    For(Duration),
    /// As long as it takes.
    Forever,
}

/// What a pod's tolerations say about a taint.
pub(crate) fn bears(pod: &Pod, taint: &Taint) -> Bears {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
    if matching.peek().is_none() {
        return Bears::Unsaid;
    }
    let seconds = matching.filter_map(|t| t.toleration_seconds).min();
    seconds.map_or(Bears::Forever, |s| Bears::For(Duration::from_secs(u64::try_from(s).unwrap_or(0))))
}

/// Whether a toleration is for a taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let key = some(&toleration.key);
    let exists = toleration.operator.as_deref() == Some("Exists");
    some(&toleration.effect).is_none_or(|effect| effect == taint.effect)
        && key.as_ref().is_none_or(|key| *key == taint.key)
        && (exists || (key.is_some() && some(&toleration.value) == some(&taint.value)))
}

/// A node's taints with those of ours exchanged: `key` put on (if any), the rest of ours taken off. `None` if that
/// changes nothing.
pub(crate) fn exchange(
    present: &[Taint],
    key: Option<&str>,
    now: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
) -> Option<Vec<Taint>> {
    let ours = |t: &&Taint| [NOT_READY, UNREACHABLE].contains(&t.key.as_str());
    let mut wanted: Vec<Taint> =
        present.iter().filter(|t| !ours(t) || Some(t.key.as_str()) == key).cloned().collect();
    for effect in [NO_SCHEDULE, NO_EXECUTE] {
        let Some(key) = key else { break };
        if !wanted.iter().any(|t| t.key == key && t.effect == effect) {
            wanted.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: (effect == NO_EXECUTE).then(|| now.clone()),
                value: None,
            });
        }
    }
    (wanted != present).then_some(wanted)
}
