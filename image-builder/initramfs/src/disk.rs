//! Finding the card, and making its last partition as large as the card is.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::card::{BOOT, DATA, SECTOR, SUPERBLOCK_AT, Superblock, Table, is_ours, order, partition_name};
use crate::{ioctl, log};

/// How long a card may take to appear. A USB disk takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// The card that this system is on.
#[derive(Debug)]
pub struct Card {
    name: String,
    /// The whole disk, open for writing.
    pub file: File,
    table: Table,
}

impl Card {
    /// Waits for the card.
    pub fn find(wanted: Option<&str>) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let disks = match wanted {
                Some(name) => vec![name.to_owned()],
                None => order(disks(Path::new("/sys/class/block"))),
            };
            if let Some(card) = disks.iter().find_map(|name| Self::open(name)) {
                return Ok(card);
            }
            if Instant::now() > deadline {
                bail!("no Bramble card was found; the disks here are: {}", disks.join(" "));
            }
            std::thread::sleep(POLL);
        }
    }

    fn open(name: &str) -> Option<Self> {
        let file = OpenOptions::new().read(true).write(true).open(Path::new("/dev").join(name)).ok()?;
        let table = recognise(&file)?;
        let card = Self { name: name.to_owned(), file, table };
        // Their nodes come a moment after the disk's.
        (BOOT..=DATA).all(|number| card.partition(number).exists()).then_some(card)
    }

    /// The device of a partition.
    pub fn partition(&self, number: u8) -> PathBuf {
        Path::new("/dev").join(partition_name(&self.name, number))
    }

    /// Makes the data partition reach to the card's end. Nothing of the card may be mounted.
    pub fn grow(&mut self) -> Result<()> {
        let sectors = self.file.seek(SeekFrom::End(0)).context("the card's size")? / SECTOR;
        let Some(grown) = self.table.grown(sectors) else { return Ok(()) };
        let data = grown.entry(DATA);
        log::say(&format!(
            "the data partition grows to {} MiB",
            u64::from(data.sectors) * SECTOR / (1 << 20)
        ));
        self.file.write_all_at(grown.raw(), 0).context("writing the partition table")?;
        self.file.sync_all().context("writing the partition table")?;
        ioctl::resize_partition(
            &self.file,
            DATA,
            u64::from(data.start) * SECTOR,
            u64::from(data.sectors) * SECTOR,
        )
        .context("telling the kernel of the data partition's size")?;
        self.table = grown;
        Ok(())
    }

    /// The blocks that the mounted data file system should be told to have, if it can grow.
    pub fn data_blocks(&self) -> Option<u64> {
        let data = self.table.entry(DATA);
        superblock(&self.file, u64::from(data.start) * SECTOR)?.grown(u64::from(data.sectors) * SECTOR)
    }
}

/// All disks of the machine; partitions and what is no disk at all are left out.
fn disks(class: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(class) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| !entry.path().join("partition").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !["loop", "ram", "zram", "dm-"].iter().any(|prefix| name.starts_with(prefix)))
        .collect()
}

fn recognise(disk: &File) -> Option<Table> {
    let mut sector = [0; 512];
    disk.read_exact_at(&mut sector, 0).ok()?;
    let table = Table::read(&sector)?;
    disk.read_exact_at(&mut sector, u64::from(table.entry(BOOT).start) * SECTOR).ok()?;
    let data = superblock(disk, u64::from(table.entry(DATA).start) * SECTOR);
    is_ours(&sector, data.as_ref()).then_some(table)
}

fn superblock(disk: &File, partition: u64) -> Option<Superblock> {
    let mut raw = [0; 1024];
    disk.read_exact_at(&mut raw, partition + SUPERBLOCK_AT).ok()?;
    Superblock::read(&raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_and_ram_disks_are_no_cards() {
        let class = tempfile::tempdir().unwrap();
        for name in ["mmcblk0", "mmcblk0p1", "loop0", "ram1", "vda"] {
            fs::create_dir(class.path().join(name)).unwrap();
        }
        fs::write(class.path().join("mmcblk0p1/partition"), "1\n").unwrap();
        let mut found = disks(class.path());
        found.sort();
        assert_eq!(found, ["mmcblk0", "vda"]);
        assert_eq!(disks(Path::new("/nowhere")), Vec::<String>::new());
    }

    #[test]
    fn a_file_of_zeros_is_no_card() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(recognise(&file), None);
        file.set_len(1 << 20).unwrap();
        assert_eq!(recognise(&file), None);
    }
}
