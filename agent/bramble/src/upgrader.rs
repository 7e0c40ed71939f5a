//! A node's part in `kube-config upgrade --cluster`: does what the Node's annotation asks, and answers in another.
//!
//! What is decided is in [`kube_config::upgrade::decide`]; the upgrade itself is the command, as a person would type it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube_config::upgrade::{self, ANSWER, Act, Answer, Outcome, REQUEST, Request};
use serde_json::json;
use tokio::process::Command;

/// Between two looks at a new system that is on trial.
const TRIAL: Duration = Duration::from_secs(5);
/// Of what a failed upgrade said, the end.
const WORDS: usize = 400;

/// Upgrades the node it runs on when asked to.
pub struct Upgrader {
    nodes: Api<Node>,
    name: String,
    /// The request that was begun by this very agent.
    begun: Option<String>,
}

impl Upgrader {
    /// For the node of this name.
    pub fn new(client: kube::Client, name: String) -> Self {
        Self { nodes: Api::all(client), name, begun: None }
    }

    /// Watches the node's own object.
    pub async fn run(mut self) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = pin!(watcher(self.nodes.clone(), only).default_backoff().applied_objects());
        let (mut node, mut again) = (None, false);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(news)) => node = Some(news),
                    // The watch comes back by itself.
                    Some(Err(_)) => continue,
                    None => return,
                },
                () = tokio::time::sleep(TRIAL), if again => {}
            }
            let Some(node) = &node else { continue };
            again = self.step(node).await.unwrap_or_else(|error| {
                tracing::warn!("an upgrade that was asked for: {error:#}");
                true
            });
        }
    }

    /// Does what is next; true if it must be looked at again.
    async fn step(&mut self, node: &Node) -> Result<bool> {
        let Some(request) = annotation::<Request>(node, REQUEST) else { return Ok(false) };
        if self.begun.as_ref() == Some(&request.id) {
            return Ok(false);
        }
        let answer = annotation::<Answer>(node, ANSWER);
        if answer.as_ref().is_some_and(|a| a.id == request.id && a.progress != Outcome::Running) {
            return Ok(false);
        }
        let here = match upgrade::boot() {
            Ok(here) => here,
            Err(error) => {
                let answer =
                    answer_to(&request, String::new(), String::new(), Outcome::Failed(format!("{error:#}")));
                self.say(&request, answer).await?;
                return Ok(false);
            }
        };
        let answered = |progress| answer_to(&request, here.boot.clone(), here.running.to_string(), progress);
        match upgrade::decide(&request, answer.as_ref(), &here) {
            Act::Nothing => Ok(false),
            Act::Later => Ok(true),
            Act::Say(progress) => self.say(&request, answered(progress)).await.map(|()| false),
            Act::Begin => {
                self.say(&request, answered(Outcome::Running)).await?;
                self.begun = Some(request.id.clone());
                if let Err(error) = install(&request.from).await {
                    self.say(&request, answered(Outcome::Failed(format!("{error:#}")))).await?;
                }
                Ok(false)
            }
        }
    }

    /// Answers; pods may come back once it is over, however it went.
    async fn say(&self, request: &Request, answer: Answer) -> Result<()> {
        let annotations = BTreeMap::from([(ANSWER, serde_json::to_string(&answer)?)]);
        let mut patch = json!({"metadata": {"annotations": annotations}});
        if request.uncordon && answer.progress != Outcome::Running {
            patch["spec"] = json!({"unschedulable": null});
        }
        self.nodes.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }
}

fn answer_to(request: &Request, boot: String, slot: String, progress: Outcome) -> Answer {
    Answer { id: request.id.clone(), boot, slot, progress }
}

fn annotation<T: serde::de::DeserializeOwned>(node: &Node, name: &str) -> Option<T> {
    serde_json::from_str(node.metadata.annotations.as_ref()?.get(name)?).ok()
}

/// `kube-config upgrade`, then the reboot.
async fn install(from: &str) -> Result<()> {
    let program = std::env::current_exe().context("where the agent's program is")?;
    let mut command = Command::new(program);
    // After `--`, whatever was asked for is an address and no option.
    command.args(["kube-config", "upgrade", "--no-reboot", "--", from]);
    let output = command.output().await.context("kube-config upgrade")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let end: String =
            said.trim().chars().rev().take(WORDS).collect::<Vec<_>>().into_iter().rev().collect();
        bail!("{}", end.trim_start_matches("error: "));
    }
    tokio::task::spawn_blocking(upgrade::reboot).await.context("rebooting")?
}

/// Resolves once the system that runs is no longer on trial, or is not one of a card's two.
pub async fn kept() {
    while tokio::task::spawn_blocking(upgrade::boot)
        .await
        .is_ok_and(|boot| boot.is_ok_and(|here| here.state.good != here.running))
    {
        tokio::time::sleep(TRIAL).await;
    }
}
