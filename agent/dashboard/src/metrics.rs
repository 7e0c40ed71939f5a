//! Numbers for Prometheus, in its text format.

use crate::view::View;
use std::fmt::Write as _;

/// What the kernel says of this process; missing where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) cpu_seconds: Option<f64>,
}

impl Usage {
    /// Reads `/proc/self`.
    pub(crate) fn read() -> Self {
        let stat = procfs::process::Process::myself().and_then(|process| process.stat()).ok();
        let ticks = stat.as_ref().map(|stat| stat.utime.saturating_add(stat.stime));
        Self {
            resident_bytes: stat.as_ref().map(|stat| stat.rss.saturating_mul(procfs::page_size())),
            cpu_seconds: ticks.map(|ticks| ticks as f64 / procfs::ticks_per_second() as f64),
        }
    }
}

/// A metric's name, what it means, its type, and its samples as (labels, value).
struct Metric(&'static str, &'static str, &'static str, Vec<(String, f64)>);

/// The whole answer.
pub(crate) fn render(view: &View, usage: Usage, version: &str) -> String {
    let mut text = String::new();
    for Metric(name, help, kind, samples) in
        process(usage, version).into_iter().chain(cluster(view)).chain(raft(view))
    {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    text
}

fn process(usage: Usage, version: &str) -> Vec<Metric> {
    let build = vec![(label("version", version), 1.0)];
    let mut metrics = vec![Metric("bramble_build_info", "The version that runs.", "gauge", build)];
    if let Some(bytes) = usage.resident_bytes {
        let help = "Resident memory of the agent.";
        metrics.push(Metric("process_resident_memory_bytes", help, "gauge", one(bytes)));
    }
    if let Some(seconds) = usage.cpu_seconds {
        let samples = vec![(String::new(), seconds)];
        metrics.push(Metric("process_cpu_seconds_total", "CPU time of the agent.", "counter", samples));
    }
    metrics
}

fn cluster(view: &View) -> Vec<Metric> {
    let headline = &view.headline;
    let phases = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];
    // Phases from outside become one of the known: labels must not grow without bound.
    let known = |phase: &str| view.phases.get(phase).copied().unwrap_or_default();
    let others = view.phases.values().sum::<usize>() - phases.iter().map(|phase| known(phase)).sum::<usize>();
    let pods = phases.map(|phase| {
        let count = if phase == "Unknown" { known(phase) + others } else { known(phase) };
        (label("phase", phase), count as f64)
    });
    let away = u64::from(headline.away.is_some());
    vec![
        Metric("bramble_nodes", "Nodes of the cluster.", "gauge", one(headline.nodes as u64)),
        Metric("bramble_nodes_ready", "Nodes that are ready.", "gauge", one(headline.nodes_ready as u64)),
        Metric("bramble_pods", "Pods by phase.", "gauge", pods.into()),
        Metric("bramble_services", "Services.", "gauge", one(view.services.total as u64)),
        Metric("bramble_cluster_stale", "1 while these numbers are the last known ones.", "gauge", one(away)),
    ]
}

fn raft(view: &View) -> Vec<Metric> {
    let raft = &view.raft;
    let gauge = |name, help, value| Metric(name, help, "gauge", one(value));
    vec![
        gauge("bramble_raft_term", "The current term.", raft.term),
        gauge("bramble_raft_committed_index", "Highest log index on disk at a majority.", raft.committed),
        gauge("bramble_raft_applied_index", "Highest log index applied here.", raft.applied),
        gauge("bramble_raft_last_index", "Last log index on this node.", raft.last_index),
        gauge("bramble_raft_voters", "Nodes that vote.", raft.voters.len() as u64),
        gauge("bramble_raft_learners", "Nodes that follow without a vote.", raft.learners.len() as u64),
        gauge("bramble_raft_has_leader", "1 while somebody leads.", u64::from(raft.leader.is_some())),
        gauge("bramble_raft_is_leader", "1 on the node that leads.", u64::from(leads(view))),
        gauge(
            "bramble_raft_disk_failed",
            "1 if this node cannot write.",
            u64::from(raft.disk_error.is_some()),
        ),
    ]
}

fn leads(view: &View) -> bool {
    view.raft.leader.as_ref() == Some(&view.raft.this_node)
}

fn one(value: u64) -> Vec<(String, f64)> {
    vec![(String::new(), value as f64)]
}

fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{{{name}=\"{value}\"}}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RaftStatus;
    use crate::known::Known;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    #[test]
    fn every_sample_has_its_type_and_phases_are_bounded() {
        let mut known = Known::default();
        for (name, phase) in [("a", "Running"), ("b", "Running"), ("c", "odd\"phase\n")] {
            let pod = json!({ "metadata": { "name": name }, "status": { "phase": phase } });
            known.pods.take(Event::Apply(serde_json::from_value(pod).unwrap()));
        }
        let raft =
            RaftStatus { leader: Some("a".into()), this_node: "a".into(), term: 7, ..RaftStatus::default() };
        let view = View::new(&known, &raft);
        let usage = Usage { resident_bytes: Some(4096), cpu_seconds: Some(1.5) };
        let text = render(&view, usage, "v1\"x");
        for line in [
            "bramble_pods{phase=\"Running\"} 2",
            "bramble_pods{phase=\"Unknown\"} 1",
            "bramble_raft_term 7",
            "bramble_raft_is_leader 1",
            "process_resident_memory_bytes 4096",
            "process_cpu_seconds_total 1.5",
            "bramble_build_info{version=\"v1\\\"x\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        for sample in text.lines().filter(|line| !line.starts_with('#')) {
            let name = sample.split(['{', ' ']).next().unwrap();
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
        }
    }

    #[test]
    fn this_process_uses_memory() {
        let usage = Usage::read();
        assert!(usage.resident_bytes.unwrap() > 100_000);
        assert!(usage.cpu_seconds.unwrap() >= 0.0);
    }
}
