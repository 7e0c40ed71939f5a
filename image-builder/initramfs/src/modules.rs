//! The kernel modules that the initramfs brings: paths in `/etc/modules`, in an order in which each can be loaded.

use std::fs::{self, File};
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::log;

const LIST: &str = "/etc/modules";

/// Loads them all. One that does not load may not be needed on this machine: what is missing shows soon enough.
pub fn load() {
    let list = fs::read_to_string(LIST).unwrap_or_default();
    for path in paths(&list) {
        match insert(Path::new(path)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // No such device: the module is for other machines.
            Err(Errno::NODEV) => {}
            Err(error) => log::complain(&format!("{path}: {error}")),
        }
    }
}

fn paths(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(str::trim).filter(|line| line.starts_with('/'))
}

fn insert(path: &Path) -> Result<(), Errno> {
    let file = File::open(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    finit_module(&file, c"", 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_are_modules() {
        let list = "# comment\n\n/lib/modules/6/a.ko\n  /lib/b.ko \nnonsense\n";
        assert_eq!(paths(list).collect::<Vec<_>>(), ["/lib/modules/6/a.ko", "/lib/b.ko"]);
    }
}
