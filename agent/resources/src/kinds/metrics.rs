//! NodeMetrics and PodMetrics: what nodes and pods use, measured when somebody asks.

use super::BASE;
use super::columns::{NAME, string};
use crate::Builtin;
use crate::json::{items, text};
use crate::quantity::Quantity;
use serde_json::Value;

const GROUP: &str = "metrics.k8s.io";

pub const NODE_METRICS: Builtin = Builtin {
    kind: "NodeMetrics",
    plural: "nodes",
    namespaced: false,
    columns: &[
        NAME,
        string("cpu", |node, _| text(node, "/usage/cpu").into()),
        string("memory", |node, _| text(node, "/usage/memory").into()),
        string("Window", |node, _| text(node, "/window").into()),
    ],
    ..MEASURED
};

pub const POD_METRICS: Builtin = Builtin {
    kind: "PodMetrics",
    plural: "pods",
    columns: &[
        NAME,
        string("cpu", |pod, _| sum(pod, "cpu")),
        string("memory", |pod, _| sum(pod, "memory")),
        string("Window", |pod, _| text(pod, "/window").into()),
    ],
    ..MEASURED
};

const MEASURED: Builtin = Builtin { group: GROUP, version: "v1beta1", measured: true, ..BASE };

/// What a pod's containers use together.
fn sum(pod: &Value, resource: &str) -> Value {
    let amounts = items(pod, "/containers").iter().map(|c| text(c, &format!("/usage/{resource}")));
    let parsed = amounts.filter_map(|amount| Quantity::parse(amount).ok());
    parsed.reduce(std::ops::Add::add).map(|sum| sum.to_string()).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_uses_what_its_containers_use() {
        let pod = json!({"metadata": {"name": "web"}, "window": "15s", "containers": [
            {"name": "a", "usage": {"cpu": "1500000n", "memory": "1024Ki"}},
            {"name": "b", "usage": {"cpu": "500000n", "memory": "512Ki"}}]});
        let kind = crate::Descriptor::from(&POD_METRICS);
        let cells = kind.cells(&pod, &crate::CellContext { now: 0 });
        assert_eq!(cells, [json!("web"), json!("2m"), json!("1536Ki"), json!("15s")]);
        assert_eq!(kind.verbs(), ["get", "list"]);
    }
}
