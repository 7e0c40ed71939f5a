//! The initramfs: `/init`, the modules it loads and their list, as a cpio archive ("newc"), zstd.

use crate::kernel::{Modules, module_bytes};
use crate::project::LoadedRecipe;
use crate::tree::{Kind, Node, Tree};
use anyhow::{Context, Result};

/// Debian's kernels can unpack zstd on every board's architecture.
const LEVEL: i32 = 19;

/// Builds the archive. `root` has every module, before the keep-lists.
pub fn build(
    root: &Tree,
    modules: Option<&Modules>,
    recipes: &[&LoadedRecipe],
    init: &[u8],
    epoch: u32,
) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    for (path, mode) in [("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555)] {
        tree.insert(path, Node::directory(mode))?;
    }
    tree.insert("init", Node::file(init, 0o755))?;
    let mut list = String::new();
    if let Some(modules) = modules {
        let mut files = Vec::new();
        for loaded in recipes {
            for wanted in &loaded.recipe.initramfs.modules {
                let found = modules.find(wanted.get_ref());
                files.extend(found.map_err(|e| loaded.document.error(wanted.span(), e.to_string()))?);
            }
        }
        for file in modules.load_order(files) {
            let bytes = module_bytes(root, &modules.path(file))?;
            let plain = file.split(".ko").next().unwrap_or(file);
            let path = format!("lib/modules/{}/{plain}.ko", modules.version);
            list += &format!("/{path}\n");
            tree.insert(&path, Node::file(bytes, 0o644))?;
        }
    }
    tree.insert("etc/modules", Node::file(list.into_bytes(), 0o644))?;
    zstd::encode_all(&*cpio(&tree, epoch)?, LEVEL).context("compressing the initramfs")
}

/// The tree as a cpio archive.
fn cpio(tree: &Tree, epoch: u32) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (number, (path, node)) in (1..).zip(tree.iter()) {
        let (kind, bytes): (u32, &[u8]) = match &node.kind {
            Kind::File(bytes) => (0o100_000, bytes),
            Kind::Directory => (0o040_000, &[]),
            Kind::Symlink(target) => (0o120_000, target.as_bytes()),
        };
        let mode = kind | u32::from(node.mode);
        entry(&mut out, path, bytes, [number, mode, node.uid, node.gid, epoch])?;
    }
    entry(&mut out, "TRAILER!!!", &[], [0; 5])?;
    Ok(out)
}

fn entry(
    out: &mut Vec<u8>,
    path: &str,
    bytes: &[u8],
    [number, mode, uid, gid, time]: [u32; 5],
) -> Result<()> {
    let size = u32::try_from(bytes.len()).context("a file of more than 4 GiB")?;
    let name = u32::try_from(path.len() + 1)?;
    let fields = [number, mode, uid, gid, 1, time, size, 0, 0, 0, 0, name, 0];
    out.extend(b"070701");
    out.extend(fields.iter().flat_map(|f| format!("{f:08X}").into_bytes()));
    out.extend(path.bytes().chain([0]));
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_its_entries_aligned_and_ended() {
        let mut tree = Tree::default();
        tree.insert("etc/modules", Node::file(*b"abcde", 0o644)).unwrap();
        let archive = cpio(&tree, 7).unwrap();
        assert!(archive.len().is_multiple_of(4));
        let text = String::from_utf8_lossy(&archive);
        let headers: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(headers.len(), 3);
        assert!(headers.iter().all(|at| at % 4 == 0));
        assert_eq!(&archive[headers[1] + 14..headers[1] + 22], b"000081A4");
        assert!(text.contains("etc/modules\0") && text.contains("TRAILER!!!\0"));
    }
}
