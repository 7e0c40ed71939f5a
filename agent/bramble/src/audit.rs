//! The audit log's settings: `[audit]` in the file, `--audit-*` on the command line. Off unless it is told where to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use apiserver::{Audit, Limits, Policy};
use serde::Deserialize;

/// Where requests are written down, and which.
#[derive(Clone, Debug, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct AuditLog {
    /// The file that requests are written to; none are without one.
    #[arg(long = "audit-log-path", value_name = "FILE", requires = "roles")]
    pub log: Option<PathBuf>,
    /// Which requests, and how much of them: an audit.k8s.io/v1 Policy. Metadata of all without one.
    #[arg(long = "audit-policy-file", value_name = "FILE", requires = "log")]
    pub policy: Option<PathBuf>,
    /// MiB that the file grows to.
    #[arg(long = "audit-log-maxsize", value_name = "MIB", default_value_t = 10, requires = "log")]
    pub max_size_mib: u64,
    /// Full files that are kept.
    #[arg(long = "audit-log-maxbackup", value_name = "N", default_value_t = 1, requires = "log")]
    pub max_backups: usize,
}

impl Default for AuditLog {
    fn default() -> Self {
        Self { log: None, policy: None, max_size_mib: 10, max_backups: 1 }
    }
}

impl AuditLog {
    /// Opens the log, if there is to be one.
    pub fn open(&self) -> Result<Option<Arc<Audit>>> {
        let Some(path) = &self.log else { return Ok(None) };
        ensure!(
            (1..=4096).contains(&self.max_size_mib) && self.max_backups <= 100,
            "the audit log: its size must be 1 to 4096 MiB, with at most 100 backups"
        );
        let policy = self.policy.as_deref().map_or_else(|| Ok(Policy::metadata()), read)?;
        let limits = Limits { max_size: self.max_size_mib << 20, max_backups: self.max_backups };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("the audit log's folder {} cannot be made", folder.display()))?;
        }
        let audit = Audit::to_file(policy, path, limits);
        let audit = audit.with_context(|| format!("the audit log {} cannot be opened", path.display()))?;
        Ok(Some(Arc::new(audit)))
    }
}

fn read(path: &Path) -> Result<Policy> {
    let named = || format!("the audit policy {}", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    Policy::parse(&text).map_err(anyhow::Error::msg).with_context(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_off_unless_told_where_to() {
        assert!(AuditLog::default().open().unwrap().is_none());
        let dir = tempfile::tempdir().unwrap();
        let on = AuditLog { log: Some(dir.path().join("log/audit.log")), ..AuditLog::default() };
        assert!(on.open().unwrap().is_some());
        assert!(dir.path().join("log/audit.log").exists());
        let policy = dir.path().join("policy.yaml");
        std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Some}]\n")
            .unwrap();
        let wrong = AuditLog { policy: Some(policy.clone()), ..on.clone() };
        let why = format!("{:#}", wrong.open().unwrap_err());
        assert!(why.contains("policy.yaml") && why.contains("unknown variant `Some`"), "{why}");
        let huge = AuditLog { max_size_mib: 1 << 40, ..on };
        assert!(huge.open().is_err());
    }
}
