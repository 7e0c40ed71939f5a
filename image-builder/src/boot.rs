//! What is on the boot partition: firmware, `config.txt`, files of recipes, and a folder for each slot with the kernel,
//! the initramfs, the command line and the device trees.

use crate::project::{LoadedBoard, LoadedRecipe};
use crate::schema::plain_path;
use crate::system::{Given, Unpacked, file_bytes, find_file};
use crate::tree::{Kind, Node, Tree};
use anyhow::{Context, Result, bail};
use slots::Slot;

/// Names in a slot's folder.
pub const KERNEL: &str = "kernel";
/// The initramfs.
pub const INITRAMFS: &str = "initramfs";

/// The files of one slot: the same in an image and in an update bundle, but for the slot's own letter.
pub fn slot_files(
    board: &LoadedBoard,
    recipes: &[&LoadedRecipe],
    unpacked: &Unpacked,
    initramfs: Vec<u8>,
    slot: Slot,
) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.insert(KERNEL, Node::file(kernel(&unpacked.kernel)?, 0o644))?;
    tree.insert(INITRAMFS, Node::file(initramfs, 0o644))?;
    let cmdline = cmdline(board, recipes, slot);
    tree.insert("cmdline.txt", Node::file(cmdline.into_bytes(), 0o644))?;
    for dtb in &board.board.dtbs {
        let found = find_file(&unpacked.kernel, dtb.file.get_ref());
        let bytes = found.map_err(|e| board.document.error(dtb.file.span(), e.to_string()))?;
        for name in std::iter::once(dtb.file.get_ref()).chain(&dtb.aliases) {
            tree.insert(name, Node::file(bytes, 0o644))?;
        }
    }
    Ok(tree)
}

/// The partition of a fresh image: slot A filled.
pub fn partition(
    board: &LoadedBoard,
    recipes: &[&LoadedRecipe],
    given: &Given,
    firmware: &Tree,
    slot_a: &Tree,
) -> Result<Tree> {
    let mut tree = Tree::default();
    for name in &board.board.firmware.files {
        let found = find_file(firmware, name.get_ref());
        let bytes = found.map_err(|e| board.document.error(name.span(), e.to_string()))?;
        tree.insert(name.get_ref(), Node::file(bytes, 0o644))?;
    }
    tree.insert("config.txt", Node::file(config_txt(board, recipes).into_bytes(), 0o644))?;
    for loaded in recipes {
        for file in &loaded.recipe.boot_files {
            let path =
                plain_path(file.path.get_ref()).map_err(|m| loaded.document.error(file.path.span(), m))?;
            tree.insert(path, Node::file(file_bytes(loaded, file, board, given)?, 0o644))?;
        }
    }
    for slot in [Slot::A, Slot::B] {
        tree.insert(slot.folder(), Node::directory(0o755))?;
    }
    for (path, node) in slot_a.iter() {
        tree.insert(&format!("{}/{path}", Slot::A.folder()), node.clone())?;
    }
    Ok(tree)
}

/// The kernel, as the firmware takes it.
fn kernel(tree: &Tree) -> Result<&[u8]> {
    let is_kernel = |(path, _): &(&str, &Node)| path.starts_with("boot/vmlinuz-");
    let (path, node) = tree.iter().find(is_kernel).context("the kernel package has no boot/vmlinuz-*")?;
    match &node.kind {
        // "MZ" without the mark of a plain Image (64-bit) or zImage (32-bit) is an EFI program, which needs an EFI.
        Kind::File(bytes) if bytes.get(56..60) == Some(b"ARMd") => Ok(bytes),
        Kind::File(bytes) if bytes.get(36..40) == Some(&[0x18, 0x28, 0x6f, 0x01]) => Ok(bytes),
        Kind::File(bytes) if bytes.starts_with(&[0x1f, 0x8b]) => Ok(bytes),
        _ => bail!("{path}: neither an ARM Image nor a zImage"),
    }
}

fn cmdline(board: &LoadedBoard, recipes: &[&LoadedRecipe], slot: Slot) -> String {
    let consoles = board.board.consoles.iter().map(|c| format!("console={c}"));
    let words = board.board.cmdline.iter().chain(recipes.iter().flat_map(|r| &r.recipe.cmdline));
    let words = words.map(|w| w.get_ref().clone()).chain([format!("bramble.slot={}", slot.letter())]);
    consoles.chain(words).collect::<Vec<_>>().join(" ") + "\n"
}

fn config_txt(board: &LoadedBoard, recipes: &[&LoadedRecipe]) -> String {
    let lines = board.board.config_txt.iter().chain(recipes.iter().flat_map(|r| &r.recipe.config_txt));
    let mut text = String::from(
        "# Read by the Pi's firmware. The next line says which slot boots; updates change it.\n",
    );
    text += &format!("os_prefix={}/\nkernel={KERNEL}\ninitramfs {INITRAMFS}\n", Slot::A.folder());
    for line in lines {
        text += line.get_ref();
        text.push('\n');
    }
    text
}
