//! A real registry on the host, with one image for the guests' architecture.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::bake::web_server;
use crate::guest::free_port;

/// How long it may take to start.
const START: Duration = Duration::from_secs(30);

/// Runs for as long as the test does, on the host's loopback.
#[derive(Debug)]
pub struct Registry {
    server: Child,
    port: u16,
    /// What it holds.
    _folder: TempDir,
}

impl Registry {
    /// Starts it, and pushes a web server as `name:latest`.
    pub fn with_web_server(name: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bramble-registry-").tempdir()?;
        let (port, data) = (free_port()?, folder.path().join("data"));
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
            data.display()
        );
        fs::write(&config, text)?;
        let mut command = Command::new(crate::out().join("tools/docker-registry"));
        let server =
            command.arg("serve").arg(&config).spawn().context("docker-registry: hack/setup --test")?;
        let registry = Self { server, port, _folder: folder };
        registry.push(name)?;
        Ok(registry)
    }

    fn push(&self, name: &str) -> Result<()> {
        let folder = tempfile::tempdir()?;
        web_server(folder.path(), name)?;
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            ensure!(begun.elapsed() < START, "the registry does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/build.py");
        let mut push = Command::new("python3");
        push.arg("-B").arg(script).arg("--out").arg(folder.path());
        let pushed = push.arg("push").arg(format!("http://127.0.0.1:{}", self.port)).output()?;
        ensure!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        Ok(())
    }

    /// Its address, from a guest that knows the host by `host`.
    pub fn address(&self, host: &str) -> String {
        format!("{host}:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
