//! `image-builder deb`: the agent as a Debian package, for a system that is there already.
//!
//! A `.deb` is an ar archive of three members: the format's version, a tar with the package's description and scripts,
//! a tar with its files. Both are written here, with one time on everything, so the same input gives the same bytes.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use md5::{Digest, Md5};
use tar::{EntryType, Header};

use crate::schema::Arch;

/// dpkg runs them. A node that is removed leaves its cluster first and nothing behind; a version that replaces another
/// keeps its containers running.
const SCRIPTS: [(&str, &str); 4] = [
    ("preinst", include_str!("../deb/preinst")),
    ("postinst", include_str!("../deb/postinst")),
    ("prerm", include_str!("../deb/prerm")),
    ("postrm", include_str!("../deb/postrm")),
];

const MAINTAINER: &str = "Bramble <bramble@localhost>";

/// What `deb` takes.
#[derive(Debug, Args)]
pub struct Deb {
    /// Debian's architecture: armhf, arm64 or amd64.
    #[arg(long, value_parser = arch)]
    arch: Arch,
    /// The agent, built for it.
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// The package's version.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"), value_parser = version)]
    package_version: String,
    /// The time that all files bear, seconds since 1970.
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    epoch: u32,
    /// How hard to pack, 0 (quick, for tests) to 9.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(0..=9))]
    preset: u32,
    /// Folder with systemd/, README.md and LICENSE.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    root: PathBuf,
    /// Folder for the package.
    #[arg(long, value_name = "FOLDER", default_value = "out")]
    out: PathBuf,
}

fn arch(text: &str) -> Result<Arch, String> {
    let known = [Arch::Armhf, Arch::Arm64, Arch::Amd64];
    known.into_iter().find(|arch| arch.debian() == text).ok_or_else(|| "armhf, arm64 or amd64".to_owned())
}

/// Debian policy 5.6.12, without an epoch.
fn version(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+~-".contains(&byte);
    let good = text.starts_with(|c: char| c.is_ascii_digit()) && text.len() < 64 && text.bytes().all(plain);
    if good { Ok(text.to_owned()) } else { Err("not a version of a Debian package".to_owned()) }
}

/// Makes the package.
///
/// # Errors
/// If the agent is not for the architecture, or something cannot be read or written.
pub fn run(args: &Deb) -> Result<()> {
    let agent = fs::read(&args.agent).with_context(|| args.agent.display().to_string())?;
    let libc = needs(&agent, args.arch).with_context(|| args.agent.display().to_string())?;
    let files = files(args, agent)?;
    let control = control(args, &libc, files.iter().map(|file| file.size()).sum());
    let bytes = package(&control, &files, args)?;
    let name = format!("bramble_{}_{}.deb", args.package_version, args.arch);
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let path = args.out.join(&name);
    let mut whole = tempfile::NamedTempFile::new_in(&args.out)?;
    whole.write_all(&bytes)?;
    fs::set_permissions(whole.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    whole.persist(&path).with_context(|| path.display().to_string())?;
    println!("{}: {}", path.display(), indicatif::HumanBytes(bytes.len() as u64));
    Ok(())
}

/// What the package installs.
struct Packed {
    path: &'static str,
    mode: u32,
    what: What,
}

enum What {
    Folder,
    File(Vec<u8>),
    Link(&'static str),
}

impl Packed {
    /// KiB on disk, as policy counts them.
    fn size(&self) -> u64 {
        if let What::File(bytes) = &self.what { (bytes.len() as u64).div_ceil(1024) } else { 1 }
    }
}

fn files(args: &Deb, agent: Vec<u8>) -> Result<Vec<Packed>> {
    let read = |name: &str| {
        let path = args.root.join(name);
        fs::read(&path).with_context(|| path.display().to_string())
    };
    let folder = |path| Packed { path, mode: 0o755, what: What::Folder };
    let link = |path, to| Packed { path, mode: 0o777, what: What::Link(to) };
    let file = |path, mode, bytes| Packed { path, mode, what: What::File(bytes) };
    let copyright = "Copyright 2026 the authors of Bramble\n\nBramble is under the Apache License, Version 2.0:\n/usr/share/common-licenses/Apache-2.0\n";
    Ok(vec![
        folder("usr"),
        folder("usr/bin"),
        link("usr/bin/bramble", "../lib/bramble/bramble"),
        link("usr/bin/kube-config", "../lib/bramble/bramble"),
        folder("usr/lib"),
        folder("usr/lib/bramble"),
        file("usr/lib/bramble/bramble", 0o755, agent),
        // Where the front looks for the stock one.
        link("usr/lib/bramble/kubectl", "../../bin/kubectl"),
        folder("usr/lib/systemd"),
        folder("usr/lib/systemd/system"),
        file("usr/lib/systemd/system/bramble.service", 0o644, read("systemd/bramble.service")?),
        folder("usr/share"),
        folder("usr/share/doc"),
        folder("usr/share/doc/bramble"),
        file("usr/share/doc/bramble/README.md", 0o644, read("README.md")?),
        file("usr/share/doc/bramble/changelog.gz", 0o644, changelog(args)?),
        file("usr/share/doc/bramble/copyright", 0o644, copyright.into()),
    ])
}

fn control(args: &Deb, libc: &str, kib: u64) -> String {
    format!(
        "Package: bramble\n\
         Version: {}\n\
         Architecture: {}\n\
         Maintainer: {MAINTAINER}\n\
         Installed-Size: {kib}\n\
         Depends: {libc}, libgcc-s1, systemd, ca-certificates\n\
         Recommends: kubectl | kubernetes-client\n\
         Section: admin\n\
         Priority: optional\n\
         Description: Raspberry Pis as one Kubernetes cluster\n \
         One agent per node runs containers, keeps the cluster's state, serves the\n \
         Kubernetes API, schedules, forwards services and answers DNS.\n \
         .\n \
         After installing: kube-config install, then kube-config enable-master or\n \
         kube-config enable-worker ADDRESS.\n",
        args.package_version, args.arch
    )
}

/// As policy wants it of a package whose version is nobody else's; what changed is in the repository.
fn changelog(args: &Deb) -> Result<Vec<u8>> {
    let time = jiff::Timestamp::from_second(args.epoch.into())?.to_zoned(jiff::tz::TimeZone::UTC);
    let text = format!(
        "bramble ({}) stable; urgency=medium\n\n  * Made from the repository as it was then.\n\n -- {MAINTAINER}  {}\n",
        args.package_version,
        jiff::fmt::rfc2822::to_string(&time)?
    );
    let mut packed = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::best());
    packed.write_all(text.as_bytes())?;
    Ok(packed.finish()?)
}

/// What `dpkg --verify` compares the installed files with.
fn md5sums(files: &[Packed]) -> String {
    let line = |file: &Packed| match &file.what {
        What::File(bytes) => Some(format!("{}  {}\n", crate::hash::hex(&Md5::digest(bytes)), file.path)),
        _ => None,
    };
    files.iter().filter_map(line).collect()
}

fn package(control: &str, files: &[Packed], args: &Deb) -> Result<Vec<u8>> {
    let epoch = args.epoch;
    let mut about = Tar::new(args);
    about.folder("", 0o755)?;
    about.file("control", 0o644, control.as_bytes())?;
    about.file("md5sums", 0o644, md5sums(files).as_bytes())?;
    SCRIPTS.iter().try_for_each(|(name, text)| about.file(name, 0o755, text.as_bytes()))?;
    let mut data = Tar::new(args);
    data.folder("", 0o755)?;
    for Packed { path, mode, what } in files {
        match what {
            What::Folder => data.folder(path, *mode)?,
            What::File(bytes) => data.file(path, *mode, bytes)?,
            What::Link(to) => data.link(path, to)?,
        }
    }
    let mut deb = b"!<arch>\n".to_vec();
    member(&mut deb, "debian-binary", b"2.0\n", epoch);
    member(&mut deb, "control.tar.xz", &about.finish()?, epoch);
    member(&mut deb, "data.tar.xz", &data.finish()?, epoch);
    Ok(deb)
}

/// One member of an ar archive.
fn member(deb: &mut Vec<u8>, name: &str, bytes: &[u8], epoch: u32) {
    deb.extend_from_slice(
        format!("{name:<16}{epoch:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 100_644, bytes.len()).as_bytes(),
    );
    deb.extend_from_slice(bytes);
    if bytes.len() % 2 == 1 {
        deb.push(b'\n');
    }
}

/// A tar whose entries differ in nothing but what they must.
struct Tar {
    builder: tar::Builder<liblzma::write::XzEncoder<Vec<u8>>>,
    epoch: u32,
}

impl Tar {
    fn new(args: &Deb) -> Self {
        let packed = liblzma::write::XzEncoder::new(Vec::new(), args.preset);
        Self { builder: tar::Builder::new(packed), epoch: args.epoch }
    }

    fn header(&self, kind: EntryType, mode: u32, size: u64) -> Result<Header> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(self.epoch.into());
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        Ok(header)
    }

    fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        let mut header = self.header(EntryType::Directory, mode, 0)?;
        let path = if path.is_empty() { "./".to_owned() } else { format!("{path}/") };
        Ok(self.builder.append_data(&mut header, path, std::io::empty())?)
    }

    fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let mut header = self.header(EntryType::Regular, mode, bytes.len() as u64)?;
        Ok(self.builder.append_data(&mut header, path, bytes)?)
    }

    fn link(&mut self, path: &str, to: &str) -> Result<()> {
        let mut header = self.header(EntryType::Symlink, 0o777, 0)?;
        Ok(self.builder.append_link(&mut header, path, to)?)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.builder.into_inner()?.finish()?)
    }
}

/// Checks that an ELF program is for the architecture; gives the dependency on the C library that it was linked with.
fn needs(program: &[u8], arch: Arch) -> Result<String> {
    let (class, machine) = match arch {
        Arch::Armhf => (1, 40),
        Arch::Arm64 => (2, 183),
        Arch::Amd64 => (2, 62),
    };
    ensure!(program.len() > 20 && program[..4] == *b"\x7fELF", "not a program for Linux");
    if program[4] != class || u16::from_le_bytes([program[18], program[19]]) != machine {
        bail!("not a program for {arch}");
    }
    let mut newest = (2, 17);
    for at in memchr::memmem::find_iter(program, b"GLIBC_2.") {
        let digits: String = program[at + 8..]
            .iter()
            .take(3)
            .take_while(|b| b.is_ascii_digit())
            .map(|b| char::from(*b))
            .collect();
        newest = newest.max((2, digits.parse().unwrap_or(0)));
    }
    Ok(format!("libc6 (>= {}.{})", newest.0, newest.1))
}

#[cfg(test)]
mod tests;
