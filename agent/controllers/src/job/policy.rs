//! What a job's failure policy says about a pod that failed.

use k8s_openapi::api::{
    batch::v1::{JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule},
    core::v1::Pod,
};

use crate::pod;

/// What becomes of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts.
    Count,
    /// It does not.
    Ignore,
    /// The job has failed with it; why.
    Fail(String),
}

/// The first rule that matches decides.
pub(super) fn judge(spec: &JobSpec, p: &Pod) -> Verdict {
    let rules = spec.pod_failure_policy.as_ref().map(|policy| policy.rules.as_slice()).unwrap_or_default();
    if pod::phase(p) != "Failed" {
        return Verdict::Count;
    }
    for (i, rule) in rules.iter().enumerate() {
        let Some(why) = matches(rule, p) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailJob" => Verdict::Fail(format!("{why} matching FailJob rule at index {i}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// What about the pod a rule is for.
fn matches(rule: &PodFailurePolicyRule, p: &Pod) -> Option<String> {
    let (namespace, name) =
        (p.metadata.namespace.as_deref().unwrap_or_default(), p.metadata.name.as_deref().unwrap_or_default());
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = exit(codes, p)?;
        return Some(format!(
            "Container {container} for pod {namespace}/{name} failed with exit code {code}"
        ));
    }
    let pattern = rule.on_pod_conditions.iter().flatten().find(|pattern| {
        let status = pattern.status.as_deref().unwrap_or("True");
        pod::condition(p, &pattern.type_).is_some_and(|c| c.status == status)
    })?;
    Some(format!("Pod {namespace}/{name} has condition {}", pattern.type_))
}

/// The container, and how it ended.
fn exit<'a>(codes: &PodFailurePolicyOnExitCodesRequirement, p: &'a Pod) -> Option<(&'a str, i32)> {
    let status = p.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let ended = all.filter_map(|s| {
        let end = s.state.as_ref()?.terminated.as_ref()?;
        Some((s.name.as_str(), end.exit_code))
    });
    let meant = |name: &str| codes.container_name.as_deref().is_none_or(|wanted| wanted == name);
    ended.filter(|(name, code)| *code != 0 && meant(name)).find(|(_, code)| {
        let listed = codes.values.contains(code);
        if codes.operator == "NotIn" { !listed } else { listed }
    })
}
