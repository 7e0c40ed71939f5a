//! The helper sub-commands alone, for this crate's own tests; and `host`, an agent that may be killed.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use runtime::{Config, ContainerSpec, Libcontainer, Registries, Runtime};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = runtime::helper(&args) {
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    let text: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    match &text[1..] {
        [command, dir, cgroup_root] if command == "host" => {
            match host(&args[0], PathBuf::from(dir), cgroup_root) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    eprintln!("{e}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => {
            eprintln!("usage: runtime-helper shim|exec|unpack|host");
            ExitCode::from(64)
        }
    }
}

/// Starts the containers on standard input, says so, and then waits to be killed.
fn host(helper: &OsString, dir: PathBuf, cgroup_root: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let specs: Vec<ContainerSpec> = serde_json::from_str(&text)?;
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(async {
        let runtime = Libcontainer::open(Config {
            state_dir: dir.join("lib"),
            run_dir: dir.join("run"),
            cgroup_root: cgroup_root.to_owned(),
            helper: PathBuf::from(helper),
            registries: Registries::default(),
        })
        .await?;
        for spec in specs {
            runtime.start(spec).await?;
        }
        println!("started");
        std::future::pending().await
    })
}
