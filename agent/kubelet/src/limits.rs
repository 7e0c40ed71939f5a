//! Requests and limits: quantities, quality of service, what the kernel is told.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use runtime::Resources;

const PERIOD_MICROS: i64 = 100_000;
const MIN_QUOTA: i64 = 1_000;
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

/// A quantity in thousandths (`1500m` and `1.5` are 1500), rounded up. `None` when it does not parse.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    let text = quantity.0.trim();
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let scale: f64 = match suffix {
        "" => 1e3,
        "n" => 1e-6,
        "u" => 1e-3,
        "m" => 1.0,
        "k" => 1e6,
        "M" => 1e9,
        "G" => 1e12,
        "T" => 1e15,
        "P" => 1e18,
        "E" => 1e21,
        "Ki" => 1024.0 * 1e3,
        "Mi" => 1024f64.powi(2) * 1e3,
        "Gi" => 1024f64.powi(3) * 1e3,
        "Ti" => 1024f64.powi(4) * 1e3,
        "Pi" => 1024f64.powi(5) * 1e3,
        "Ei" => 1024f64.powi(6) * 1e3,
        exponent => 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?) * 1e3,
    };
    // Float casts saturate; the small step down keeps 0.1 from becoming 101 thousandths.
    Some((number * scale - 1e-6).ceil() as i64)
}

/// A quantity as a whole number, rounded up.
pub fn whole(quantity: &Quantity) -> Option<i64> {
    milli(quantity).map(|value| value.div_euclid(1000) + i64::from(value.rem_euclid(1000) > 0))
}

type List = BTreeMap<String, Quantity>;

fn positive<'a>(list: Option<&'a List>, name: &str) -> Option<&'a Quantity> {
    list?.get(name).filter(|quantity| milli(quantity).is_some_and(|value| value > 0))
}

/// A container's limit.
pub fn limit<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    positive(container.resources.as_ref()?.limits.as_ref(), name)
}

/// A container's request; without one its limit.
pub fn request<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    positive(container.resources.as_ref()?.requests.as_ref(), name).or_else(|| limit(container, name))
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(spec: Option<&PodSpec>) -> &'static str {
    let Some(spec) = spec else { return "BestEffort" };
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let any = all().any(|c| ["cpu", "memory"].iter().any(|name| request(c, name).is_some()));
    let guaranteed = all().all(|c| {
        ["cpu", "memory"]
            .iter()
            .all(|name| limit(c, name).is_some_and(|limit| request(c, name).and_then(milli) == milli(limit)))
    });
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The pod's cgroup below the cgroup root.
pub fn pod_cgroup(spec: Option<&PodSpec>, uid: &str) -> String {
    match qos_class(spec) {
        "Guaranteed" => format!("/kubepods/pod{uid}"),
        "Burstable" => format!("/kubepods/burstable/pod{uid}"),
        _ => format!("/kubepods/besteffort/pod{uid}"),
    }
}

/// What the kernel is told about a container.
pub fn resources(spec: &PodSpec, container: &Container, node_memory: u64) -> Resources {
    let cpu_request = request(container, "cpu").and_then(milli).unwrap_or(0);
    let shares = u64::try_from(cpu_request).unwrap_or(0).saturating_mul(1024) / 1000;
    let quota = limit(container, "cpu")
        .and_then(milli)
        .map(|m| (m.saturating_mul(PERIOD_MICROS) / 1000).max(MIN_QUOTA));
    Resources {
        cpu_shares: Some(shares.clamp(MIN_SHARES, MAX_SHARES)),
        cpu_quota: quota,
        memory_limit: limit(container, "memory").and_then(whole),
        pids_limit: None,
        oom_score_adj: Some(oom_score_adj(spec, container, node_memory)),
    }
}

/// Who goes first when memory runs out: besteffort, then by how little of the node was asked for.
pub fn oom_score_adj(spec: &PodSpec, container: &Container, node_memory: u64) -> i32 {
    if spec.priority.is_some_and(|priority| priority >= 2_000_000_000) {
        return -997;
    }
    match qos_class(Some(spec)) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let asked = request(container, "memory").and_then(whole).unwrap_or(0);
            let asked = i128::from(asked) * 1000 / i128::from(node_memory.max(1));
            i32::try_from((1000 - asked).clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        let list = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect())
        };
        let resources = k8s_openapi::api::core::v1::ResourceRequirements {
            requests: list(requests),
            limits: list(limits),
            ..Default::default()
        };
        Container { resources: Some(resources), ..Container::default() }
    }

    fn spec(container: Container) -> PodSpec {
        PodSpec { containers: vec![container], ..PodSpec::default() }
    }

    #[test]
    fn quantities_parse() {
        let table =
            [("1", 1000), ("0.1", 100), ("100m", 100), ("1.5", 1500), ("1Ki", 1_024_000), ("2e3", 2_000_000)];
        for (text, expect) in table {
            assert_eq!(milli(&Quantity(text.into())), Some(expect), "{text}");
        }
        assert_eq!(whole(&Quantity("128Mi".into())), Some(134_217_728));
        assert_eq!(milli(&Quantity("lots".into())), None);
        assert_eq!(whole(&Quantity("1m".into())), Some(1));
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let both = [("cpu", "1"), ("memory", "1Gi")];
        assert_eq!(qos_class(Some(&spec(container(&both, &both)))), "Guaranteed");
        assert_eq!(qos_class(Some(&spec(container(&[], &both)))), "Guaranteed");
        assert_eq!(qos_class(Some(&spec(container(&both, &[])))), "Burstable");
        assert_eq!(qos_class(Some(&spec(container(&[], &[])))), "BestEffort");
    }

    #[test]
    fn kernel_numbers_are_those_of_kubernetes() {
        let c = container(&[("cpu", "250m"), ("memory", "512Mi")], &[("cpu", "500m"), ("memory", "1Gi")]);
        let got = resources(&spec(c.clone()), &c, 1 << 31);
        assert_eq!(got.cpu_shares, Some(256));
        assert_eq!(got.cpu_quota, Some(50_000));
        assert_eq!(got.memory_limit, Some(1 << 30));
        assert_eq!(got.oom_score_adj, Some(750));
        let none = Container::default();
        let got = resources(&spec(none.clone()), &none, 1 << 31);
        assert_eq!((got.cpu_shares, got.cpu_quota, got.oom_score_adj), (Some(2), None, Some(1000)));
    }
}
