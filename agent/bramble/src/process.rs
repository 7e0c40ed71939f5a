//! What the process is, whatever it runs: its log, its threads, its limits, and how it ends.

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// Descriptors for 1024 relayed streams, the forwarder's connections and their pipes.
const FILES: u64 = 1 << 18;

/// Runs one piece of work, which is all there is, with the log on standard error.
pub fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BRAMBLE_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,raft=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    end_on_panic();
    more_files();
    // A Pi has four slow cores and little memory: two workers serve it, more only cost stacks.
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    tokio.block_on(work)
}

/// Resolves when the process is told to end.
pub async fn told_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}

/// A task that panicked is a part of the node that is gone: better to start anew, which costs a second and no
/// container, than to go on without it.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Every stream is a descriptor, and a node without any left can neither speak to its peers nor write its log. The
/// first limit of a service is 1024; containers get that again.
fn more_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(FILES, |maximum| maximum.min(FILES));
    if limit.current.is_some_and(|current| current < most)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit })
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
