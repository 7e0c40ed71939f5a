//! State files that survive a power cut: the old content or the new, never a mixture.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Reading or writing failed.
    #[error("{}: {action} failed", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The content is not what this version writes.
    #[error("{}: not a valid state file", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// Replaces a file's content: temporary file, fsync, rename, fsync of the folder. `mode` is the file's permission bits.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), LedgerError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    let step = |action, path: &Path| {
        let path = path.to_owned();
        move |source| LedgerError::Io { action, path, source }
    };
    fs::create_dir_all(folder).map_err(step("create folder", folder))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(step("create", &temporary))?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(source) = written {
        // A full disk must not leave a stray file that takes the last bytes.
        let _ = fs::remove_file(&temporary);
        return Err(LedgerError::Io { action: "write", path: temporary, source });
    }
    fs::rename(&temporary, path).map_err(step("rename", path))?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(step("sync folder", folder))
}

/// Writes a value as JSON, as [`write`] does.
pub fn save<T: Serialize>(path: &Path, value: &T, mode: u32) -> Result<(), LedgerError> {
    let content = serde_json::to_vec_pretty(value)
        .map_err(|source| LedgerError::Content { path: path.to_owned(), source })?;
    write(path, &content, mode)
}

/// Reads a value; `None` when the file does not exist.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LedgerError> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LedgerError::Io { action: "read", path: path.to_owned(), source }),
    };
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|source| LedgerError::Content { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn saves_with_mode_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/node.json");
        assert_eq!(load::<String>(&path).unwrap(), None);
        save(&path, &"one", 0o600).unwrap();
        save(&path, &"two", 0o600).unwrap();
        assert_eq!(load::<String>(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn failed_write_keeps_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.json");
        save(&path, &"old", 0o600).unwrap();
        // A folder in the temporary file's place: the write cannot even begin.
        fs::create_dir(path.with_extension("new")).unwrap();
        assert!(save(&path, &"new", 0o600).is_err());
        assert_eq!(load::<String>(&path).unwrap().as_deref(), Some("old"));
    }

    #[test]
    fn torn_content_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.json");
        fs::write(&path, b"{\"name\": ").unwrap();
        assert!(load::<serde_json::Value>(&path).unwrap_err().to_string().contains("node.json"));
    }
}
