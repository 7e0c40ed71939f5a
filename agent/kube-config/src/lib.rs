//! The node's command line: `kube-config`, and the thin `kubectl` front.
//!
//! `kube-config` speaks the grammar of kubernetes-on-arm. It decides nothing itself: each command is one request over
//! the agent's root-only socket, answered by a stream of progress lines and one result ([`wire`]). What the agent
//! says is printed as it comes; a failure goes to standard error and the exit code is not zero.
//!
//! `kube-config upgrade` is the exception: it works on the card itself, with or without an agent, since a node whose
//! agent is ill is the one that needs it most.
//!
//! `kube-config first-boot` sets a node up from a file on its card ([`first_boot`]), before there is an agent.
//!
//! `kubectl` on a node is the stock one. The front ([`kubectl`]) translates only what stock kubectl dropped since
//! 2016 (`run --replicas`, `run --expose` making a Deployment) and points it at the node's own kubeconfig.

mod command;
mod first_boot;
mod healthy;
mod info;
mod install;
pub mod kubectl;
pub mod upgrade;
pub mod wire;

pub use command::main;
