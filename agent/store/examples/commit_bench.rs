//! Commits per second of one node with real syncs: `commit_bench [FOLDER] [COMMITS] [RUNS]`.
//!
//! Prints one line for each number of concurrent clients: minimum, median and maximum over the runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use store::{Config, Expect, Kv, Store, Transport, Txn, Write};

struct Nowhere;

impl Transport for Nowhere {
    fn send(&self, _to: u64, _message: Bytes) {}
}

fn txn(i: usize) -> Txn {
    let value = Some(Bytes::from(vec![b'x'; 512]));
    Txn { writes: vec![Write { key: format!("/bench/{}", i % 1000), expect: Expect::Any, value }] }
}

/// Commits per second with this many clients.
async fn measure(store: &Store, clients: usize, commits: usize) -> Result<f64, Box<dyn std::error::Error>> {
    let start = Instant::now();
    let each = commits.div_ceil(clients);
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..each {
                    store.commit(txn(client * each + i)).await?;
                }
                Ok::<(), store::CommitError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok((each * clients) as f64 / start.elapsed().as_secs_f64())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let commits: usize = arguments.next().map_or(Ok(2000), |n| n.parse())?;
    let runs: usize = arguments.next().map_or(Ok(5), |n| n.parse::<usize>())?.max(1);
    let dir = parent.join(format!("commit-bench-{}", std::process::id()));
    let store = Store::open(Config::new(&dir, 1), Arc::new(Nowhere)).await?;
    store.bootstrap().await?;
    store.status().wait_for(|status| status.leading).await?;
    println!(
        "{:>8} {:>12} {:>12} {:>12}  commits/s of 512 bytes, each on disk",
        "clients", "min", "median", "max"
    );
    for clients in [1, 16, 256] {
        let mut rates = Vec::new();
        for _ in 0..runs {
            rates.push(measure(&store, clients, commits).await?);
        }
        rates.sort_by(f64::total_cmp);
        let (min, median, max) = (rates[0], rates[runs / 2], rates[runs - 1]);
        println!("{clients:>8} {min:>12.0} {median:>12.0} {max:>12.0}");
    }
    store.close().await;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
