//! What a person writes: board configs, layers of recipes, layouts and suites, all TOML. Reading one either gives a
//! value whose every path, mode and glob is sound, or an error that names the file, the line and the field.

mod board;
mod layout;
mod recipe;
mod suite;

pub use board::{Arch, Board, Dtb, Firmware, Qemu};
pub use layout::{Layout, Partition, Role};
pub use recipe::{
    CratePatch, DirectoryEntry, FileEntry, Initramfs, Kernel, LayerConfig, Preload, Recipe, SymlinkEntry,
    Units, When,
};
pub use suite::{Source, Suite};

use serde::de::DeserializeOwned;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// More than any hand-written file has.
const MAX_FILE: u64 = 1024 * 1024;

/// Why an input file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It says something that it may not say.
    #[error("{}:{line}: {field}: {message}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The field's full name (`files[2].mode`), or `file` where it is about the whole.
        field: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// A file's text beside its path, to name lines and fields of it.
#[derive(Clone, Debug)]
pub struct Document {
    /// The file.
    pub path: PathBuf,
    text: String,
}

impl Document {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let read = || {
            let size = std::fs::metadata(path)?.len();
            if size > MAX_FILE {
                return Err(std::io::Error::other(format!("{size} bytes: more than {MAX_FILE}")));
            }
            std::fs::read_to_string(path)
        };
        let text = read().map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), text })
    }

    /// The value that the text describes.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        toml::from_str(&self.text)
            .map_err(|e| self.error(e.span().unwrap_or(0..0), e.message().trim().replace('\n', ", ")))
    }

    /// An error about the field at `span`.
    pub fn error(&self, span: Range<usize>, message: impl Into<String>) -> Error {
        let line = self.text.as_bytes().iter().take(span.start).filter(|b| **b == b'\n').count() + 1;
        let field = field_at(&self.text, span.start).unwrap_or_else(|| "file".to_owned());
        Error::Bad { path: self.path.clone(), line, field, message: message.into() }
    }
}

/// Full name of the field whose key or value holds byte `at`.
fn field_at(text: &str, at: usize) -> Option<String> {
    let (table, _) = DeTable::parse_recoverable(text);
    let mut name = String::new();
    descend_table(table.get_ref(), at, &mut name);
    (!name.is_empty()).then_some(name)
}

fn descend_table(table: &DeTable<'_>, at: usize, name: &mut String) {
    // The span of a `[header]` table is its header; what follows it is found through its own entries.
    let holds = |(key, value): &(&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        key.span().contains(&at) || value_holds(value, at)
    };
    if let Some((key, value)) = table.iter().find(holds) {
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(key.get_ref());
        descend_value(value.get_ref(), at, name);
    }
}

fn value_holds(value: &toml::Spanned<DeValue<'_>>, at: usize) -> bool {
    value.span().contains(&at)
        || match value.get_ref() {
            DeValue::Table(table) => table.iter().any(|(k, v)| k.span().contains(&at) || value_holds(v, at)),
            DeValue::Array(items) => items.iter().any(|v| value_holds(v, at)),
            _ => false,
        }
}

fn descend_value(value: &DeValue<'_>, at: usize, name: &mut String) {
    match value {
        DeValue::Table(table) => descend_table(table, at, name),
        DeValue::Array(items) => {
            if let Some((index, item)) = items.iter().enumerate().find(|(_, item)| value_holds(item, at)) {
                name.push_str(&format!("[{index}]"));
                descend_value(item.get_ref(), at, name);
            }
        }
        _ => {}
    }
}

/// A path in the image, absolute and plain, as the tree's own (relative) spelling of it.
pub fn image_path(path: &str) -> Result<&str, String> {
    let relative =
        path.strip_prefix('/').ok_or_else(|| format!("{path:?} is not absolute: begin it with /"))?;
    plain_path(relative)
}

/// A relative path without `.`, `..`, empty parts or control characters.
pub fn plain_path(path: &str) -> Result<&str, String> {
    let bad =
        |part: &str| part.is_empty() || part == "." || part == ".." || part.chars().any(char::is_control);
    if path.len() > 1024 || path.split('/').any(bad) {
        return Err(format!("{path:?} is no plain path: no empty part, no `.`, no `..`"));
    }
    Ok(path)
}

/// Permissions written in octal.
pub fn octal_mode(mode: &str) -> Result<u16, String> {
    let octal = (3..=4).contains(&mode.len()) && mode.bytes().all(|b| (b'0'..=b'7').contains(&b));
    octal
        .then(|| u16::from_str_radix(mode, 8).ok())
        .flatten()
        .ok_or_else(|| format!("{mode:?} is no mode: write it in octal, as in \"0644\""))
}

#[cfg(test)]
mod tests;
