//! The order of a cluster's upgrade: one node at a time, this one last, and never the majority's last node.

use super::record::Progress;

/// A node as the plan sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) ready: bool,
    /// It votes on the cluster's state.
    pub(crate) voter: bool,
    /// The command runs on it.
    pub(crate) here: bool,
    /// Asked in this upgrade.
    pub(crate) asked: bool,
    /// What it answered in this upgrade.
    pub(crate) answer: Option<Progress>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Drain this node and ask it.
    Upgrade(String),
    /// This node is at it.
    Wait(String),
    /// Nothing more is done; why.
    Stop(String),
    /// All nodes are done.
    Done,
}

/// Decides on the next step.
pub(crate) fn next(nodes: &[Node]) -> Next {
    let failed = nodes.iter().find_map(|node| match &node.answer {
        Some(Progress::Failed(why)) => Some(format!("{}: {why}", node.name)),
        _ => None,
    });
    if let Some(why) = failed {
        return Next::Stop(why);
    }
    let done = |node: &Node| node.answer == Some(Progress::Done);
    let at_it = |node: &&Node| node.asked && !(done(node) && node.ready);
    if let Some(node) = nodes.iter().find(at_it) {
        return Next::Wait(node.name.clone());
    }
    let mut left: Vec<&Node> = nodes.iter().filter(|node| !done(node)).collect();
    // Nodes without a vote first: what is wrong with an update is found where it costs least.
    left.sort_by_key(|node| (node.here, node.voter, &node.name));
    let Some(node) = left.first() else { return Next::Done };
    if let Some(away) = nodes.iter().find(|node| !node.ready) {
        return Next::Stop(format!("{} is not Ready: nothing is upgraded while a node is away", away.name));
    }
    let voters = nodes.iter().filter(|node| node.voter).count();
    // One voter is all that a cluster of one or two nodes has: its API is away while that node reboots.
    if node.voter && voters > 1 && (voters - 1) * 2 <= voters {
        return Next::Stop(format!("without {} the cluster's state would have no majority", node.name));
    }
    Next::Upgrade(node.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(name: &str, voter: bool, here: bool) -> Node {
        Node { name: name.to_owned(), ready: true, voter, here, asked: false, answer: None }
    }

    fn cluster() -> Vec<Node> {
        vec![
            node("n1", true, true),
            node("n2", true, false),
            node("n3", true, false),
            node("n4", false, false),
        ]
    }

    #[test]
    fn one_after_the_other_and_this_one_last() {
        let mut nodes = cluster();
        let mut order = Vec::new();
        loop {
            match next(&nodes) {
                Next::Upgrade(name) => {
                    let node = nodes.iter_mut().find(|node| node.name == name).unwrap();
                    node.asked = true;
                    order.push(name.clone());
                    assert_eq!(next(&nodes), Next::Wait(name.clone()));
                    let node = nodes.iter_mut().find(|node| node.name == name).unwrap();
                    (node.answer, node.ready) = (Some(Progress::Done), false);
                    assert_eq!(next(&nodes), Next::Wait(name.clone()), "done, and back only when Ready");
                    nodes.iter_mut().for_each(|node| node.ready = true);
                }
                Next::Done => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(order, ["n4", "n2", "n3", "n1"]);
    }

    #[test]
    fn the_first_failure_stops_it() {
        let mut nodes = cluster();
        nodes[3].asked = true;
        nodes[3].answer = Some(Progress::Failed("no space".to_owned()));
        assert_eq!(next(&nodes), Next::Stop("n4: no space".to_owned()));
    }

    #[test]
    fn nothing_begins_while_a_node_is_away() {
        let mut nodes = cluster();
        nodes[1].ready = false;
        assert!(matches!(next(&nodes), Next::Stop(why) if why.contains("n2")));
    }

    #[test]
    fn small_clusters_and_two_voters() {
        assert_eq!(next(&[node("n1", true, true)]), Next::Upgrade("n1".to_owned()));
        let two = [node("n1", true, true), node("n2", false, false)];
        assert_eq!(next(&two), Next::Upgrade("n2".to_owned()));
        let mut voters = [node("n1", true, true), node("n2", true, false)];
        assert!(matches!(next(&voters), Next::Stop(why) if why.contains("majority")));
        voters[1].voter = false;
        assert_eq!(next(&voters), Next::Upgrade("n2".to_owned()));
    }

    proptest! {
        /// Whatever the cluster looks like: a node is only begun while all others are up and a majority remains.
        #[test]
        fn never_two_at_once(bits in proptest::collection::vec(any::<(bool, bool, bool, u8)>(), 1..8)) {
            let nodes: Vec<Node> = bits.iter().enumerate().map(|(at, (ready, voter, asked, answer))| {
                let answer = match answer % 4 {
                    0 => Some(Progress::Done),
                    1 => Some(Progress::Failed("x".to_owned())),
                    2 => Some(Progress::Running),
                    _ => None,
                };
                Node {
                    name: format!("n{at}"), ready: *ready, voter: *voter, here: at == 0,
                    asked: *asked || answer.is_some(), answer,
                }
            }).collect();
            if let Next::Upgrade(name) = next(&nodes) {
                let others = nodes.iter().filter(|node| node.name != name);
                prop_assert!(others.clone().all(|n| n.ready && (!n.asked || n.answer == Some(Progress::Done))));
                let voters = nodes.iter().filter(|node| node.voter).count();
                let left = others.filter(|node| node.voter && node.ready).count();
                prop_assert!(voters <= 1 || left * 2 > voters);
            }
        }
    }
}
