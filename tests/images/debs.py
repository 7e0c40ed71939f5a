"""Debian packages: what a package needs, fetched and checked by apt, opened without dpkg."""

import io
import re
import subprocess
import tarfile
import urllib.parse
from pathlib import Path

# Debian's names for architectures, and the OCI's.
OCI_ARCH = {"amd64": "amd64", "arm64": "arm64", "armhf": "arm"}
AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60


class PackageError(Exception):
    """A package cannot be had or read."""


def host_arch():
    name = run(["dpkg", "--print-architecture"]).strip()
    if name not in OCI_ARCH:
        raise PackageError(f"no test images for a {name} machine (amd64, arm64 and armhf are known)")
    return OCI_ARCH[name]


def run(command):
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PackageError(f"{command[0]} is missing: the images are made on Debian") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()[-3:]
        raise PackageError(f"{' '.join(command[:2])} failed: {' / '.join(lines)}") from error
    return done.stdout


class Pool:
    """A folder of fetched packages. apt resolves as if nothing were installed, and checks what it fetches."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.closures = {}
        self.used = set()

    def apt(self, archives, *arguments):
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        options = {
            "Dir::State::status": "/dev/null",
            "Dir::Cache::archives": f"{archives}/",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",
        }
        flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        return run(["apt-get", *flags, "-qq", "-y", *arguments])

    def closure(self, names, without):
        """Paths of the packages and of all they depend on."""
        key = (tuple(names), tuple(without))
        if key not in self.closures:
            # Resolved against an empty archive folder: apt leaves out of the list what its folder already holds.
            listed = self.apt(self.folder / "none", "--print-uris", "install", *names)
            wanted = re.findall(r"^'[^']+' (\S+\.deb)", listed, re.MULTILINE)
            if not all((self.folder / name).exists() for name in wanted):
                self.apt(self.folder, "--download-only", "install", *names)
            absent = [name for name in wanted if not (self.folder / name).exists()]
            if absent or not wanted:
                raise PackageError(f"apt did not fetch {', '.join(absent or names)}: run apt-get update and try again")
            self.closures[key] = [self.folder / n for n in sorted(wanted) if n.split("_")[0] not in without]
            self.used |= {urllib.parse.unquote(path.name) for path in self.closures[key]}
        return self.closures[key]


def members_of(path):
    """The members of an ar archive, by name."""
    data = path.read_bytes()
    if not data.startswith(AR_MAGIC):
        raise PackageError(f"{path.name} is not a Debian package")
    members, at = {}, len(AR_MAGIC)
    while at + AR_HEADER <= len(data):
        name = data[at : at + 16].decode().strip().rstrip("/")
        size = int(data[at + 48 : at + 58])
        members[name] = data[at + AR_HEADER : at + AR_HEADER + size]
        at += AR_HEADER + size + size % 2
    return members


def merged_usr(path):
    """Where a path of an old-style package is in a system with a merged /usr."""
    if path.split("/", 1)[0] in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        return "usr/" + path
    return path


def files_of(package, strip):
    """path -> (TarInfo, bytes) of a package's files, less what matches one of `strip`."""
    members = members_of(package)
    name = next((n for n in members if n.startswith("data.tar")), None)
    if name is None or name.endswith(".zst"):
        raise PackageError(f"{package.name}: cannot read {name or 'a package without data'}")
    unwanted = re.compile("|".join(strip))
    entries = {}
    with tarfile.open(fileobj=io.BytesIO(members[name])) as tar:
        for info in tar:
            path = merged_usr(info.name.removeprefix("./").rstrip("/"))
            if path in ("", ".") or unwanted.match(path + "/"):
                continue
            if info.islnk():
                info.linkname = merged_usr(info.linkname.removeprefix("./"))
            entries[path] = (info, tar.extractfile(info).read() if info.isreg() else b"")
    return entries
