//! Starts, ends and removes 300 containers, eight at a time; says how long each step takes and what a shim costs.
//!
//! `cargo bench -p runtime --bench containers` (as root). Ends with an error if a single one fails.

// A panic is how a test says that something failed.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::World;
use runtime::Runtime;

const CONTAINERS: usize = 300;
const PARALLEL: usize = 8;
const ALONE: usize = 40;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let w = World::new().await;
        let mut alone = Vec::new();
        for n in 0..ALONE {
            let begun = Instant::now();
            let id = format!("alone{n}");
            w.runtime.start(w.spec(&id, "exit 0")).await.unwrap();
            alone.push(begun.elapsed());
            w.runtime.wait(&id).await.unwrap();
            w.runtime.remove(&id).await.unwrap();
        }
        show("one at a time, start to running", alone.into_iter());
        let begun = Instant::now();
        let slots = tokio::sync::Semaphore::new(PARALLEL);
        let one = async |n: usize| {
            let _slot = slots.acquire().await.unwrap();
            let id = format!("c{n}");
            let start = Instant::now();
            w.runtime.start(w.spec(&id, &format!("exit {}", n % 256))).await.unwrap();
            let started = start.elapsed();
            let exit = w.runtime.wait(&id).await.unwrap();
            assert_eq!(exit.code, (n % 256) as i32);
            w.runtime.remove(&id).await.unwrap();
            (started, start.elapsed())
        };
        let times = futures::future::join_all((0..CONTAINERS).map(one)).await;
        println!("{CONTAINERS} containers, {PARALLEL} at a time: {:?} in all", begun.elapsed());
        show("start to running", times.iter().map(|t| t.0));
        show("start to removed", times.iter().map(|t| t.1));
        shim_cost(&w).await;
        w.end().await;
    });
}

fn show(what: &str, times: impl Iterator<Item = Duration>) {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    println!("{what}: p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
}

/// Memory that belongs to one shim alone.
async fn shim_cost(w: &World) {
    w.runtime.start(w.spec("resident", "exec sleep 1000")).await.unwrap();
    let state = std::fs::read(w.dir.path().join("lib/containers/resident/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", state["shim"]["pid"])).unwrap();
    for key in ["Rss:", "Pss:", "Private_Dirty:"] {
        println!("a shim's {}", rollup.lines().find(|l| l.starts_with(key)).unwrap());
    }
}
