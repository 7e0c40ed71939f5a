#!/usr/bin/env python3
"""Makes the test images from Debian packages and pushes them to a registry.

    build.py build [--out DIR] [--refresh]      make out/images/{layout,*.oci.tar,*.docker.tar}
    build.py push URL [--out DIR] [NAME...]     push them with the distribution protocol
    build.py save FILE.tar.gz NAME... [--out DIR]   one docker-save archive of several images

Two runs from the same packages give the same bytes: entries are sorted, times and owners fixed.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import debs
import push
import recipes

HERE = Path(__file__).resolve().parent
OCI = "application/vnd.oci.image."
EXIT_CODE_FAILED = 1


class BuildError(Exception):
    """Something a person can act on."""


def say(text):
    print(f"    {text}", flush=True)


# --- blobs ---------------------------------------------------------------------------------------------------------


class Layout:
    """An OCI image layout folder: blobs by digest."""

    def __init__(self, root):
        self.root = Path(root)
        self.blobs = self.root / "blobs" / "sha256"

    def create(self):
        self.blobs.mkdir(parents=True, exist_ok=True)
        (self.root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def put(self, data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": len(data)}

    def get(self, digest):
        return (self.blobs / digest.removeprefix("sha256:")).read_bytes()


def as_json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


# --- layers --------------------------------------------------------------------------------------------------------


def tar_of(entries):
    """entries: path -> (TarInfo, bytes). Parents first, all of it in sorted order, owned by root, at time 0."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(entries):
            info, data = entries[path]
            info.name, info.mtime, info.uname, info.gname = path, 0, "", ""
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return buffer.getvalue()


def entry(kind, mode, link=""):
    info = tarfile.TarInfo()
    info.type, info.mode, info.linkname = kind, mode, link
    return info


def add_parents(entries):
    for path in list(entries):
        for parent in Path(path).parents:
            name = parent.as_posix()
            if name != ".":
                entries.setdefault(name, (entry(tarfile.DIRTYPE, 0o755), b""))


def exit0_program(arch):
    """A static ELF program that calls exit(0)."""
    code = {
        "amd64": bytes.fromhex("31ffb83c0000000f05"),  # xor edi,edi; mov eax,60; syscall
        "arm64": bytes.fromhex("000080d2a80b80d2010000d4"),  # mov x0,0; mov x8,93; svc 0
        "arm": bytes.fromhex("0000a0e30170a0e3000000ef"),  # mov r0,0; mov r7,1; svc 0
    }[arch]
    machine, wide = {"amd64": (62, True), "arm64": (183, True), "arm": (40, False)}[arch]
    word = 8 if wide else 4
    header, program = (64, 56) if wide else (52, 32)
    base = 0x10000
    start = base + header + program
    size = header + program + len(code)

    def n(value, width):
        return value.to_bytes(width, "little")

    elf = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9) + n(2, 2) + n(machine, 2) + n(1, 4)
    elf += n(start, word) + n(header, word) + n(0, word)
    elf += n(0 if wide else 0x05000000, 4) + n(header, 2) + n(program, 2) + n(1, 2) + n(0, 6)
    if wide:
        elf += n(1, 4) + n(5, 4) + n(0, 8) + n(base, 8) * 2 + n(size, 8) * 2 + n(0x1000, 8)
    else:
        elf += n(1, 4) + n(0, 4) + n(base, 4) * 2 + n(size, 4) * 2 + n(5, 4) + n(0x1000, 4)
    return elf + code


def busybox_links(entries, binary):
    """A link for each applet, as the binary itself lists them."""
    probe = Path(os.environ["BRAMBLE_IMAGES_TMP"]) / "busybox"
    probe.write_bytes(entries[binary][1])
    probe.chmod(0o755)
    try:
        applets = subprocess.run([probe, "--list"], check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"busybox does not run on this machine: {error}") from error
    folder = str(Path(binary).parent)
    for applet in applets:
        if applet != "busybox":
            entries.setdefault(f"{folder}/{applet}", (entry(tarfile.SYMTYPE, 0o777, "busybox"), b""))


def layer_entries(recipe, packages, arch):
    entries = {}
    for package in packages:
        entries.update(debs.files_of(package, recipes.STRIP))
    if "busybox" in recipe:
        busybox_links(entries, recipe["busybox"])
    for path, mode in recipe.get("dirs", {}).items():
        entries[path] = (entry(tarfile.DIRTYPE, mode), b"")
    for path, target in recipe.get("links", {}).items():
        entries[path] = (entry(tarfile.SYMTYPE, 0o777, target), b"")
    for path, text in recipe.get("files", {}).items():
        entries[path] = (entry(tarfile.REGTYPE, 0o644), text.encode())
    if "exit0" in recipe:
        entries[recipe["exit0"]] = (entry(tarfile.REGTYPE, 0o755), exit0_program(arch))
    add_parents(entries)
    return entries


class Builder:
    """Makes layers once, however many images use them."""

    def __init__(self, layout, pool):
        self.layout, self.pool = layout, pool
        self.arch = debs.host_arch()
        self.made = {}

    def layer(self, name, below, arch):
        """The layer's descriptor and diff id. `below`: names of the layers under it, whose packages it leaves out."""
        key = (name, tuple(below), arch)
        if key not in self.made:
            recipe = recipes.LAYERS[name]
            lower = [p for layer in below for p in self.packages(layer)]
            packages = [p for p in self.packages(name) if p not in lower]
            data = tar_of(layer_entries(recipe, packages, arch))
            packed = gzip.compress(data, compresslevel=6, mtime=0)
            descriptor = self.layout.put(packed, OCI + "layer.v1.tar+gzip")
            say(f"layer {name} ({arch}): {len(data) >> 10} KiB, {len(packages)} packages")
            self.made[key] = (descriptor, "sha256:" + hashlib.sha256(data).hexdigest())
        return self.made[key]

    def packages(self, name):
        recipe = recipes.LAYERS[name]
        if "debs" not in recipe:
            return []
        return self.pool.closure(recipe["debs"], recipe.get("without", []))

    def manifest(self, layers, config, platform):
        """One platform's manifest, as a descriptor with its platform."""
        arch, _, variant = platform.partition("/")
        made = [self.layer(name, layers[:i], arch) for i, name in enumerate(layers)]
        document = {
            "architecture": arch,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in made]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": name} for name in layers],
        }
        if variant:
            document["variant"] = variant
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI + "manifest.v1+json",
            "config": self.layout.put(as_json(document), OCI + "config.v1+json"),
            "layers": [descriptor for descriptor, _ in made],
        }
        descriptor = self.layout.put(as_json(manifest), OCI + "manifest.v1+json")
        descriptor["platform"] = {"architecture": arch, "os": "linux"}
        if variant:
            descriptor["platform"]["variant"] = variant
        return descriptor

    def platform(self, recipe, platform):
        if platform in ("host", self.arch):
            return self.manifest(recipe["layers"], recipe["config"], self.arch)
        return self.manifest(["exit0"], {"Entrypoint": ["/exit0"]}, platform)

    def image(self, recipe):
        """The descriptor that a tag points at: a manifest or an index."""
        if "index" not in recipe:
            return self.platform(recipe, recipe.get("single", "host"))
        platforms = sorted({self.arch if p == "host" else p for p in recipe["index"]})
        index = {
            "schemaVersion": 2,
            "mediaType": OCI + "index.v1+json",
            "manifests": [self.platform(recipe, platform) for platform in platforms],
        }
        return self.layout.put(as_json(index), OCI + "index.v1+json")


# --- archives ------------------------------------------------------------------------------------------------------


def reachable(layout, descriptor):
    """Digests of everything under a descriptor, itself included, children first."""
    digests = []
    if descriptor["mediaType"].endswith("+json") and "config" not in descriptor["mediaType"]:
        document = json.loads(layout.get(descriptor["digest"]))
        children = document.get("manifests") or [document["config"], *document["layers"]]
        for child in children:
            digests += [d for d in reachable(layout, child) if d not in digests]
    return digests + [descriptor["digest"]]


def tar_file(path, members):
    entries = {name: (entry(tarfile.REGTYPE, 0o644), data) for name, data in members.items()}
    add_parents(entries)
    data = tar_of(entries)
    if path.suffix == ".gz":
        data = gzip.compress(data, compresslevel=6, mtime=0)
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    temporary.rename(path)


def reference(name):
    return f"docker.io/{name}:latest"


def oci_archive(layout, images, path):
    """An OCI layout in a tar: index.json names each image in the annotation that container tools read."""
    members = {"oci-layout": (layout.root / "oci-layout").read_bytes()}
    manifests = []
    for name, descriptor in images.items():
        for digest in reachable(layout, descriptor):
            members["blobs/sha256/" + digest.removeprefix("sha256:")] = layout.get(digest)
        notes = {"io.containerd.image.name": reference(name), "org.opencontainers.image.ref.name": "latest"}
        manifests.append({**descriptor, "annotations": notes})
    members["index.json"] = as_json({"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": manifests})
    tar_file(path, members)


def docker_archive(layout, images, path):
    """What `docker save` of old writes: uncompressed layers and manifest.json. One architecture only."""
    members, listing = {}, []
    for name, descriptor in images.items():
        document = json.loads(layout.get(descriptor["digest"]))
        if "manifests" in document:
            raise BuildError(f"{name} is for several architectures: a docker-save archive cannot hold it")
        config = document["config"]["digest"].removeprefix("sha256:") + ".json"
        members[config] = layout.get(document["config"]["digest"])
        layers = []
        for layer in document["layers"]:
            layers.append(layer["digest"].removeprefix("sha256:") + "/layer.tar")
            members[layers[-1]] = gzip.decompress(layout.get(layer["digest"]))
        listing.append({"Config": config, "RepoTags": [reference(name).removeprefix("docker.io/")], "Layers": layers})
    members["manifest.json"] = as_json(listing)
    tar_file(path, members)


# --- commands ------------------------------------------------------------------------------------------------------


def recipe_hash():
    """Of everything but the packages' versions: those stay as they were until --refresh."""
    sources = [path.read_bytes() for path in sorted(HERE.glob("*.py"))]
    return hashlib.sha256(b"\0".join([debs.host_arch().encode(), *sources])).hexdigest()


def load_built(out):
    path = out / "images.json"
    built = json.loads(path.read_text()) if path.exists() else {}
    if not built.get("images"):
        raise BuildError("no images yet: run hack/images first")
    return built["images"]


def build(out, refresh):
    state = out / "images.json"
    if state.exists() and not refresh and json.loads(state.read_text()).get("recipe") == recipe_hash():
        say(f"images are there: {out}")
        return
    fresh, scratch = out / "layout.new", out / "tmp"
    for folder in (fresh, scratch):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    os.environ["BRAMBLE_IMAGES_TMP"] = str(scratch)
    layout = Layout(fresh)
    layout.create()
    builder = Builder(layout, debs.Pool(out / "debs"))
    images = {name: builder.image(recipe) for name, recipe in recipes.IMAGES.items()}
    for name, descriptor in images.items():
        stem = name.replace("/", "_")
        oci_archive(layout, {name: descriptor}, out / f"{stem}.oci.tar")
        if "index" not in descriptor["mediaType"]:
            docker_archive(layout, {name: descriptor}, out / f"{stem}.docker.tar")
        say(f"image {reference(name)} {descriptor['digest'][:19]}")
    shutil.rmtree(out / "layout", ignore_errors=True)
    fresh.rename(out / "layout")
    shutil.rmtree(scratch)
    record = {"recipe": recipe_hash(), "images": images, "packages": sorted(builder.pool.used)}
    temporary = out / "images.json.new"
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.rename(state)


def push_all(out, url, names):
    images, layout = load_built(out), Layout(out / "layout")
    registry = push.Registry(url)
    for name, descriptor in chosen(images, names).items():
        sent = registry.push(name, "latest", descriptor, layout.get)
        say(f"pushed {name} ({sent >> 10} KiB sent)")


def chosen(images, names):
    unknown = [name for name in names if name not in images]
    if unknown:
        raise BuildError(f"no image {', '.join(unknown)}; there are: {', '.join(sorted(images))}")
    return {name: images[name] for name in names} if names else images


def main():
    parser = argparse.ArgumentParser(description="Test images from Debian packages.")
    parser.add_argument("--out", type=Path, default=HERE.parent.parent / "out" / "images")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build").add_argument("--refresh", action="store_true")
    pushing = commands.add_parser("push")
    pushing.add_argument("url")
    pushing.add_argument("names", nargs="*")
    saving = commands.add_parser("save")
    saving.add_argument("file", type=Path)
    saving.add_argument("names", nargs="+")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        if args.command == "build":
            build(args.out, args.refresh)
        elif args.command == "push":
            push_all(args.out, args.url, args.names)
        else:
            docker_archive(Layout(args.out / "layout"), chosen(load_built(args.out), args.names), args.file)
    except (BuildError, debs.PackageError, push.PushError) as error:
        print(f"images: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE_FAILED)


if __name__ == "__main__":
    main()
