//! The one binary of a Bramble node.
//!
//! By the name it is called under it is the agent (`bramble agent`), the node's command line (`kube-config`), the
//! `kubectl` front, or one of the runtime's re-executed helpers (`bramble shim|exec|unpack`). This crate holds the
//! wiring and nothing else: it owns the listening sockets, the node's identity and the order in which things start.
//!
//! [`agent`] is a node's whole life: in no cluster, then in one. [`plane`] is the API and what belongs to it; [`node`] is everything that runs while it is in one;
//! [`leader`] what runs while it also leads. [`front`], [`dial`], [`peers`], [`client`] and [`gate`] carry requests
//! between nodes. After a power cut, `node.json` decides: if it is there the node goes on where it was, if not it
//! belongs nowhere and what an unfinished join left is thrown away at the next try.

mod address;
mod admin;
mod agent;
mod audit;
mod client;
mod clock;
mod config;
mod control_plane;
mod dial;
mod finder;
mod front;
mod gate;
mod health;
mod joiner;
mod kubelet_port;
mod leader;
mod listen;
mod node;
mod peers;
mod plane;
mod pods;
mod ports;
mod process;
mod raft_status;
mod roster;
mod serving;
mod signer;
mod state;
mod status_port;
mod upgrader;
mod watched;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Bramble: Raspberry Pis as one Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(name = "bramble", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run this node (systemd does it), or with --roles control-plane the Kubernetes API alone.
    Agent {
        /// A node's settings.
        #[arg(long, default_value = "/etc/bramble/config.toml", conflicts_with = "roles")]
        config: PathBuf,
        #[command(flatten)]
        alone: control_plane::Args,
    },
    /// The node's command line; also under its own name.
    #[command(disable_help_flag = true)]
    KubeConfig {
        /// What kube-config takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args.first().map(Path::new).and_then(Path::file_name).unwrap_or(OsStr::new("bramble"));
    match name.to_str() {
        Some("kube-config") => kube_config::main(args),
        Some("kubectl") => kube_config::kubectl::main(args),
        _ => bramble(args),
    }
}

fn bramble(args: Vec<OsString>) -> ExitCode {
    // Helpers first: they must not have a second thread.
    if let Some(code) = runtime::helper(&args) {
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    match Cli::parse_from(args).command {
        Command::KubeConfig { args } => {
            kube_config::main(std::iter::once(OsString::from("kube-config")).chain(args))
        }
        Command::Agent { alone, .. } if alone.is_wanted() => ended(process::run(control_plane::run(alone))),
        Command::Agent { config, .. } => ended(process::run(agent::run(&config))),
    }
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
