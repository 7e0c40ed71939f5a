//! `kube-config healthy`: whether this node's agent does what it is there for; what an update on trial is judged by.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

use crate::wire::{self, Info};

/// Between two looks.
const AGAIN: Duration = Duration::from_secs(2);

/// Waits until the agent is healthy, at most so long.
pub(crate) async fn wait(socket: &Path, seconds: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let Err(why) = look(socket).await else { return Ok(()) };
        if Instant::now() >= deadline {
            bail!("the agent is not healthy: {why}");
        }
        sleep(AGAIN).await;
    }
}

async fn look(socket: &Path) -> Result<(), String> {
    let answer = wire::call(socket, "GET", "/info", &(), |_| {}).await.map_err(|error| error.to_string())?;
    judge(&serde_json::from_value(answer).map_err(|error| error.to_string())?)
}

/// A node in no cluster is healthy when it could be in one; one in a cluster when it knows its leader.
fn judge(info: &Info) -> Result<(), String> {
    match (&info.problem, info.role.as_str(), &info.leader) {
        (Some(problem), _, _) => Err(problem.clone()),
        (None, "none", _) | (None, _, Some(_)) => Ok(()),
        (None, _, None) => Err("no leader is known: a majority of the voters is away".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(role: &str, leader: Option<&str>, problem: Option<&str>) -> Info {
        Info {
            version: String::new(),
            kubernetes: String::new(),
            role: role.to_owned(),
            node: String::new(),
            leader: leader.map(str::to_owned),
            voters: Vec::new(),
            problem: problem.map(str::to_owned),
        }
    }

    #[test]
    fn a_node_is_judged_by_what_it_is() {
        assert_eq!(judge(&info("none", None, None)), Ok(()));
        assert_eq!(judge(&info("worker", Some("a"), None)), Ok(()));
        assert!(judge(&info("worker", None, None)).is_err());
        assert_eq!(judge(&info("none", None, Some("no cgroup"))), Err("no cgroup".to_owned()));
    }

    #[tokio::test]
    async fn an_agent_that_is_not_there_is_not_healthy() {
        let error = wait(Path::new("/nowhere/agent.sock"), 0).await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/agent.sock"), "{error}");
    }
}
