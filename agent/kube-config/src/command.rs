//! The `kube-config` command.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::{first_boot, healthy, info, install, upgrade, wire};

/// Make this machine a node of a Bramble cluster.
#[derive(Debug, Parser)]
#[command(name = "kube-config", version, arg_required_else_help = true)]
struct Cli {
    /// The agent's socket.
    #[arg(long, global = true, default_value = wire::SOCKET, hide = true)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prepare an existing Debian or Raspberry Pi OS, and start the agent.
    Install {
        /// Take back what was changed: the package's own removal does it.
        #[arg(long, hide = true)]
        undo: bool,
    },
    /// Make this node the first of a new cluster.
    EnableMaster {
        /// This node's address, when it has several.
        #[arg(long)]
        address: Option<IpAddr>,
    },
    /// Join the cluster that the node at this address belongs to.
    EnableWorker {
        /// Address of any node of the cluster.
        master: IpAddr,
        /// The token that enable-master printed (not needed on cards of one batch).
        #[arg(long)]
        token: Option<String>,
        /// Never let this node vote on the cluster's state.
        #[arg(long)]
        no_vote: bool,
        /// This node's address, when it has several.
        #[arg(long)]
        address: Option<IpAddr>,
    },
    /// Take this node out of its cluster and delete its state.
    #[command(alias = "disable")]
    DisableNode {
        /// Also when the cluster refuses or does not answer: deletes this node's state all the same.
        #[arg(long)]
        force: bool,
    },
    /// Load container images from a docker-save or OCI archive, for a cluster without internet.
    Load {
        /// The archives (.tar, .tar.gz, .tar.zst).
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Print a new token for enable-worker.
    Token,
    /// Put the next version onto this node's card and boot it.
    Upgrade(upgrade::Upgrade),
    /// Set this node up from bramble.toml on the boot partition.
    FirstBoot(first_boot::FirstBoot),
    /// Wait until the agent does what it is there for.
    #[command(hide = true)]
    Healthy {
        /// At most so many seconds.
        #[arg(long, default_value_t = 0)]
        wait: u64,
    },
    /// Show what this node is and how it does.
    Info,
}

/// Runs `kube-config`; `args` begins with the program's name.
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let cli = Cli::parse_from(args);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

async fn run(cli: &Cli) -> Result<()> {
    if !matches!(cli.command, Command::Info) && !rustix::process::geteuid().is_root() {
        bail!("please run as root");
    }
    let socket = &cli.socket;
    match &cli.command {
        Command::Install { undo: true } => install::undo()?,
        Command::Install { undo: false } => install::run()?,
        Command::EnableMaster { address } => {
            print(post(socket, "/enable-master", &wire::EnableMaster { address: *address }).await?);
        }
        Command::EnableWorker { master, token, no_vote, address } => {
            let (master, token) = (*master, token.clone());
            println!("Using master ip: {master}");
            let request = wire::EnableWorker { master, token, no_vote: *no_vote, address: *address };
            print(post(socket, "/enable-worker", &request).await?);
        }
        Command::DisableNode { force } => {
            print(post(socket, "/disable-node", &wire::DisableNode { force: *force }).await?);
        }
        Command::Load { archives } => {
            for archive in archives {
                let path = std::fs::canonicalize(archive).with_context(|| archive.display().to_string())?;
                print(post(socket, "/load", &wire::Load { path }).await?);
            }
        }
        Command::Token => print(post(socket, "/token", &()).await?),
        Command::Upgrade(args) => upgrade::run(args, socket).await?,
        Command::FirstBoot(args) => first_boot::run(args, socket).await?,
        Command::Healthy { wait } => healthy::wait(socket, *wait).await?,
        Command::Info => info::print(socket).await?,
    }
    Ok(())
}

async fn post(socket: &Path, path: &str, body: &impl serde::Serialize) -> Result<serde_json::Value> {
    Ok(wire::call(socket, "POST", path, body, |line| println!("{line}")).await?)
}

/// The last words: a text, or one line for each.
fn print(done: serde_json::Value) {
    match done {
        serde_json::Value::String(text) => println!("{text}"),
        serde_json::Value::Array(lines) => lines.into_iter().for_each(print),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_of_2016() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(matches!(parse("kube-config enable-master").unwrap().command, Command::EnableMaster { .. }));
        let worker = parse("kube-config enable-worker 192.168.1.102").unwrap().command;
        assert!(
            matches!(worker, Command::EnableWorker { master, .. } if master.to_string() == "192.168.1.102")
        );
        assert!(parse("kube-config enable-worker").is_err());
        assert!(parse("kube-config enable-worker nowhere").is_err());
        assert!(parse("kube-config dance").is_err());
        assert!(matches!(
            parse("kube-config disable").unwrap().command,
            Command::DisableNode { force: false }
        ));
    }
}
