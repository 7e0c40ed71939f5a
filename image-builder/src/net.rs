//! Reads from archives: `http://`, `https://` and `file://`.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// A silent server is given up after this long.
const SILENCE: Duration = Duration::from_secs(60);

/// An archive's client. Cheap to clone: connections are shared.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
}

impl Default for Client {
    fn default() -> Self {
        let config = ureq::Agent::config_builder()
            .user_agent(concat!("bramble-image-builder/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE));
        Self { agent: config.build().into() }
    }
}

impl Client {
    /// Opens a file of an archive.
    pub fn open(&self, url: &str) -> Result<Box<dyn Read + Send>> {
        if let Some(path) = url.strip_prefix("file://") {
            return Ok(Box::new(File::open(Path::new(path)).with_context(|| url.to_owned())?));
        }
        if !url.starts_with("http://") && !url.starts_with("https://") {
            bail!("{url}: neither http://, https:// nor file://");
        }
        let response = self.agent.get(url).call().with_context(|| url.to_owned())?;
        Ok(Box::new(response.into_body().into_with_config().limit(u64::MAX).reader()))
    }

    /// All of a file that is not larger than `limit`.
    pub fn read(&self, url: &str, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(url)?.take(limit + 1).read_to_end(&mut bytes).with_context(|| url.to_owned())?;
        if bytes.len() as u64 > limit {
            bail!("{url}: larger than {limit} bytes");
        }
        Ok(bytes)
    }
}

/// Whether an archive says that it has no such file: what Debian's pool says of versions that it dropped.
pub fn is_gone(error: &anyhow::Error) -> bool {
    let not_found = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
    matches!(error.downcast_ref::<ureq::Error>(), Some(ureq::Error::StatusCode(404 | 410)))
        || error.downcast_ref::<std::io::Error>().is_some_and(not_found)
}
