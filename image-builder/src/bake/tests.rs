//! A whole bake from a mirror made in the test and signed by the test's own key.

use super::*;
use crate::cache::Dropped;
use crate::inspect::{Card, explain};
use crate::locking::{Order, make_lock};
use crate::net::Client;
use crate::resolve::Request;
use crate::schema::{Arch, Suite};
use crate::testing::{DebFile, TestKey, make_deb};
use crate::tree::Kind;
use indicatif::ProgressDrawTarget;
use std::collections::BTreeMap;
use tempfile::TempDir;

const BOARD: &str = r#"
description = "A board of the tests"
arch = "arm64"
target = "aarch64-unknown-linux-gnu"
suite = "test"
layout = "small"
kernel = "linux-image-test"
dtbs = [{ file = "test.dtb", aliases = ["other.dtb"] }]
firmware = { package = "raspi-firmware", files = ["start.elf"] }
consoles = ["ttyS1,115200"]
cmdline = ["cma=64M"]
config_txt = ["arm_64bit=1"]
"#;

const LAYOUT: &str = r#"
boot_state_sectors = [64, 72]
partitions = [
  { role = "boot", label = "BRAMBLE", start_mib = 4, size_mib = 40 },
  { role = "root-a", start_mib = 44, size_mib = 8 },
  { role = "root-b", start_mib = 52, size_mib = 8 },
  { role = "data", label = "bramble-data", start_mib = 60, size_mib = 68 },
]
"#;

const RECIPE: &str = r#"
packages = ["base"]
remove = ["/usr/share/doc/**"]
keep = ["/usr/share/doc/*/copyright"]
sysusers = ["u web - \"Web server\" /srv/web"]
cmdline = ["rootwait"]
files = [
  { path = "/usr/lib/bramble/bramble", input = "agent", mode = "0755" },
  { path = "/etc/motd", text = "@VERSION@ on @BOARD@", substitute = true },
  { path = "/srv/web/index.html", source = "index.html", owner = "web", group = "web" },
]
boot_files = [{ path = "bramble.toml", text = "hostname = \"\"\n" }]
data_directories = [{ path = "var", mode = "0750" }]
units = { enable = ["web.service"], mask = ["slow.service"] }
settings = { time = { zone = "UTC" } }
"#;

const UNIT: &[u8] = b"[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n";

/// A repository and a mirror.
struct World {
    dir: TempDir,
    key: TestKey,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap(), key: TestKey::new("archive") };
        world.write("repo/board-configs/test.toml", BOARD.as_bytes());
        world.write("repo/image-builder/layouts/small.toml", LAYOUT.as_bytes());
        world.write("repo/image-builder/layers/bramble/layer.toml", b"name = \"bramble\"\n");
        world.recipe(RECIPE);
        world.write("repo/image-builder/layers/bramble/recipes/web/files/index.html", b"<p>hello\n");
        world.write("agent", b"\x7fELF agent");
        world.write("init", b"\x7fELF init");
        world.write("my.pub.pem", b"-----BEGIN PUBLIC KEY-----\n");
        world.make_mirror("1.0");
        world
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn recipe(&self, text: &str) {
        self.write("repo/image-builder/layers/bramble/recipes/web/web.toml", text.as_bytes());
    }

    fn make_mirror(&self, version: &str) {
        let mut kernel = vec![0; 4096];
        kernel[56..60].copy_from_slice(b"ARMd");
        let base = [
            DebFile::File("bin/true", b"\x7fELF"),
            DebFile::File("usr/lib/systemd/system/web.service", UNIT),
            DebFile::File("usr/share/doc/base/README", b"long"),
            DebFile::File("usr/share/doc/base/copyright", b"free"),
            DebFile::File("etc/version", version.as_bytes()),
        ];
        let kernel = [
            DebFile::File("boot/vmlinuz-1", &kernel),
            DebFile::File("usr/lib/linux-image-1/test.dtb", b"dtb"),
        ];
        let firmware = [DebFile::File("usr/lib/raspi-firmware/start.elf", b"elf")];
        let mut index = String::new();
        for (name, depends, files) in [
            ("base", "libtest | base-lib", &base[..]),
            ("base-lib", "", &[DebFile::File("usr/lib/libtest.so", b"so")]),
            ("linux-image-test", "", &kernel),
            ("raspi-firmware", "", &firmware),
        ] {
            let deb = make_deb(files, "xz");
            let (path, sum) = (format!("pool/{name}.deb"), hash::sha256(&deb));
            self.write(&format!("mirror/{path}"), &deb);
            index += &format!(
                "Package: {name}\nVersion: {version}\nArchitecture: arm64\nDepends: {depends}\nFilename: {path}\nSize: {}\nSHA256: {sum}\n\n",
                deb.len()
            );
        }
        let mut packed = Vec::new();
        std::io::Read::read_to_end(&mut liblzma::read::XzEncoder::new(index.as_bytes(), 1), &mut packed)
            .unwrap();
        self.write("mirror/dists/test/main/binary-arm64/Packages.xz", &packed);
        let (sum, size) = (hash::sha256(&packed), packed.len());
        let release = format!(
            "Codename: test\nVersion: {version}\nDate: Sat, 12 Sep 2026 07:55:41 UTC\nSHA256:\n {sum} {size} main/binary-arm64/Packages.xz\n"
        );
        self.write("mirror/dists/test/InRelease", self.key.sign(&release).as_bytes());
    }

    fn suite(&self) -> Suite {
        let uri = self.path("mirror").display().to_string();
        let text = format!(
            "keyring = \"k\"\nsources = [{{ uri = \"file://{uri}\", suites = [\"test\"], codename = \"test\", components = [\"main\"] }}]\n"
        );
        toml::from_str(&text).unwrap()
    }

    fn open(&self) -> Result<(Project, LoadedBoard)> {
        let own = self.path("mine");
        let project = Project::open(&self.path("repo"), own.exists().then_some(own).as_slice())?;
        let board = project.board("test")?;
        Ok((project, board))
    }

    fn lock(&self) -> Result<Lock> {
        let (project, board) = self.open()?;
        let requests: BTreeMap<String, Request> =
            BTreeMap::from([("test".to_owned(), project.request(&board))]);
        let (suite, keyring) = (self.suite(), self.key.keyring());
        let now = jiff::Timestamp::now();
        let order = Order {
            suite_name: "test",
            suite: &suite,
            keyring: &keyring,
            arch: Arch::Arm64,
            requests: &requests,
            previous: None,
            now,
        };
        make_lock(&Client::default(), &order, &mut |_| {})
    }

    /// Fetches into `cache` and bakes into `out`.
    fn bake(&self, lock: &Lock, cache: &str, out: &str) -> Result<Baked> {
        let (project, board) = self.open()?;
        let cache = Cache::open(&self.path(cache))?;
        let progress = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let dropped = Dropped { elsewhere: &|_| None, remedy: "run `image-builder lock test --refresh`" };
        cache.fetch(&Client::default(), &lock.deb.iter().collect::<Vec<_>>(), &dropped, &progress)?;
        let given = Given {
            version: "1.2".into(),
            epoch: 1_700_000_000,
            agent: Some(self.path("agent")),
            update_keys: vec![self.path("my.pub.pem")],
        };
        let bake = Bake {
            project: &project,
            board: &board,
            lock,
            cache: &cache,
            given: &given,
            init: &self.path("init"),
            crates: &[],
            out: &self.path(out),
            progress: &progress,
        };
        bake.run()
    }
}

fn text(bytes: Option<&[u8]>) -> &str {
    std::str::from_utf8(bytes.unwrap()).unwrap()
}

#[test]
fn a_card_has_what_the_recipes_say() {
    let world = World::new();
    let baked = world.bake(&world.lock().unwrap(), "cache", "out").unwrap();
    let card = Card::read(&baked.image).unwrap();
    let root = |path: &str| card.root.get(path);
    assert_eq!(text(card.root.read("etc/motd")), "1.2 on test");
    assert_eq!(text(card.root.read("usr/share/bramble/defaults.toml")), "[time]\nzone = \"UTC\"\n");
    assert_eq!(card.root.read("usr/bin/true"), Some(&b"\x7fELF"[..]));
    assert_eq!(card.root.read("usr/lib/bramble/bramble"), Some(&b"\x7fELF agent"[..]));
    assert!(root("usr/share/doc/base/README").is_none() && root("usr/share/doc/base/copyright").is_some());
    let page = root("srv/web/index.html").unwrap();
    assert!(page.uid >= 300 && page.uid == page.gid);
    assert!(text(card.root.read("etc/passwd")).contains(&format!("web:x:{}:", page.uid)));
    let wants = root("etc/systemd/system/multi-user.target.wants/web.service").unwrap();
    assert_eq!(wants.kind, Kind::Symlink("/usr/lib/systemd/system/web.service".into()));
    assert!(root("etc/bramble/update-keys/my.pub.pem").is_some());
    assert!(root("boot/vmlinuz-1").is_none(), "the kernel is on the boot partition");
    assert_eq!(
        text(card.boot.read("slot-a/cmdline.txt")),
        "console=ttyS1,115200 cma=64M rootwait bramble.slot=a\n"
    );
    let config = card.boot.read("config.txt").unwrap();
    assert_eq!(slots::switch(config, Slot::A), slots::Switch::Done);
    assert!(text(Some(config)).ends_with("\narm_64bit=1\n"));
    assert_eq!(card.boot.read("slot-a/other.dtb"), Some(&b"dtb"[..]));
    assert!(card.boot.get("slot-b").is_some() && card.boot.get("start.elf").is_some());
    assert!(card.boot.get("bramble.toml").is_some());
    let copies = slots::COPIES.map(|at| card.head[at as usize..][..slots::BLOCK].try_into().unwrap());
    assert_eq!(slots::newest(&copies), Some(slots::State::new(Slot::A)));
}

#[test]
fn twice_the_same_inputs_give_the_same_bytes() {
    let world = World::new();
    let lock = world.lock().unwrap();
    let first = world.bake(&lock, "cache", "out").unwrap();
    // A world elsewhere, later: other folders, other time stamps of all inputs, nothing shared but the packages.
    let other = World { dir: tempfile::tempdir().unwrap(), key: TestKey::new("archive") };
    copy_folder(world.dir.path(), other.dir.path());
    let second = other.bake(&lock, "elsewhere/cache", "else/where/out").unwrap();
    assert_eq!(explain(&first.image, &second.image).unwrap(), Vec::<String>::new());
    for ((one, _), (two, _)) in first.files.iter().zip(&second.files) {
        assert_eq!(one.file_name(), two.file_name());
        let sum = |path: &Path| hash::sha256(&fs::read(path).unwrap());
        assert_eq!(sum(one), sum(two), "{}", one.display());
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_difference_is_explained() {
    let world = World::new();
    let lock = world.lock().unwrap();
    let first = world.bake(&lock, "cache", "one").unwrap();
    world.recipe(
        &RECIPE.replace("@VERSION@ on", "Release @VERSION@ on").replace("\"rootwait\"", "\"rootdelay=1\""),
    );
    let second = world.bake(&lock, "cache", "two").unwrap();
    let lines = explain(&first.image, &second.image).unwrap();
    assert_eq!(
        lines,
        [
            "boot: /slot-a/cmdline.txt: contents differ from byte 33 on (53 and 56 bytes)",
            "root: /etc/motd: contents differ from byte 0 on (11 and 19 bytes)",
        ]
    );
}

/// Changes one byte in the middle of a file.
fn tamper(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_tampered_package_is_named_and_stops_the_bake() {
    let world = World::new();
    let lock = world.lock().unwrap();
    world.bake(&lock, "cache", "out").unwrap();
    let cached = world.path("cache/base-lib_1.0_arm64.deb");
    tamper(&cached);
    let error = format!("{:#}", world.bake(&lock, "cache", "again").unwrap_err());
    assert!(error.contains("base-lib_1.0_arm64.deb: is not the package base-lib 1.0"), "{error}");
    assert!(fs::read_dir(world.path("again")).unwrap().next().is_none(), "something was left");
    // The mirror's own copy: refused when fetched, and not kept.
    tamper(&world.path("mirror/pool/base.deb"));
    let error = format!("{:#}", world.bake(&lock, "fresh", "again").unwrap_err());
    assert!(error.contains("mirror/pool/base.deb: is not the package base 1.0"), "{error}");
    assert!(!world.path("fresh/base_1.0_arm64.deb").exists());
}

#[test]
fn a_tampered_index_or_release_is_named() {
    let world = World::new();
    tamper(&world.path("mirror/dists/test/main/binary-arm64/Packages.xz"));
    let error = format!("{:#}", world.lock().unwrap_err());
    assert!(error.contains("suite test, architecture arm64") && error.contains("Packages.xz"), "{error}");
    let world = World::new();
    let inrelease = world.path("mirror/dists/test/InRelease");
    let text = fs::read_to_string(&inrelease).unwrap().replace("Version: 1.0", "Version: 1.1");
    fs::write(&inrelease, text).unwrap();
    let error = format!("{:#}", world.lock().unwrap_err());
    assert!(error.contains("InRelease") && error.contains("no signature is good"), "{error}");
}

#[test]
fn a_bad_recipe_is_named_by_line_and_field() {
    let world = World::new();
    let lock = world.lock().unwrap();
    let refusal = |from: &str, to: &str| {
        world.recipe(&RECIPE.replace(from, to));
        let error = format!("{:#}", world.bake(&lock, "cache", "out").map(|b| b.image).unwrap_err());
        error.split_once("web.toml:").map_or(error.clone(), |(_, rest)| rest.to_owned())
    };
    let line = |text: &str| RECIPE.lines().position(|l| l.contains(text)).unwrap() + 1;
    let at = |text: &str, rest: &str| format!("{}: {rest}", line(text));
    let motd = "path = \"/etc/motd\"";
    assert_eq!(
        refusal("mode = \"0755\" }", "mod = 1 }").split(": unknown").next().unwrap(),
        at("bramble/bramble", "files[0].mod")
    );
    assert!(
        refusal("\"/etc/motd\"", "\"etc/motd\"")
            .starts_with(&at(motd, "files[1].path: \"etc/motd\" is not absolute"))
    );
    assert!(
        refusal("source = \"index.html\"", "source = \"../x\"")
            .starts_with(&at("index.html", "files[2].source: "))
    );
    assert!(
        refusal("owner = \"web\"", "owner = \"wbe\"")
            .starts_with(&at("index.html", "files[2].owner: the image has no user \"wbe\""))
    );
    assert!(
        refusal("[\"web.service\"]", "[\"wbe.service\"]")
            .starts_with(&at("units = ", "units.enable[0]: no unit wbe.service"))
    );
    assert!(refusal("/usr/share/doc/**\"]", "/usr/[\"]").starts_with(&at("remove = ", "remove[0]: ")));
}

#[test]
fn a_layer_of_one_s_own_adds_and_overrides() {
    let world = World::new();
    world.write("mine/layer.toml", b"name = \"mine\"\n");
    world.write("mine/recipes/more/files/tree/opt/run", b"#!/bin/sh\n");
    world.write("mine/recipes/more/files/app.tar", b"layers");
    let recipe = r#"
        trees = ["tree"]
        files = [{ path = "/etc/motd", text = "mine" }]
        images = [{ archive = "app.tar" }]
        [settings]
        hostname = "pi"
        time = { zone = "Europe/Helsinki" }
    "#;
    world.write("mine/recipes/more/more.toml", recipe.as_bytes());
    world.write(
        "mine/recipes/more/other-boards.toml",
        b"when = { boards = [\"rpi-9\"] }\npackages = [\"nothing\"]\n",
    );
    let baked = world.bake(&world.lock().unwrap(), "cache", "out").unwrap();
    let root = Card::read(&baked.image).unwrap().root;
    assert_eq!(text(root.read("etc/motd")), "mine");
    assert_eq!(text(root.read("usr/share/bramble/images/app.tar")), "layers");
    assert_eq!(
        text(root.read("usr/share/bramble/defaults.toml")),
        "hostname = \"pi\"\n\n[time]\nzone = \"Europe/Helsinki\"\n"
    );
    assert!(root.get("opt/run").is_some() && root.get("srv/web/index.html").is_some());
    // What lies outside of the layer does not get onto a card by a link in it, nor by a name.
    world.write("precious", b"a key");
    std::os::unix::fs::symlink(world.path("precious"), world.path("mine/recipes/more/files/link")).unwrap();
    std::os::unix::fs::symlink(world.path("repo"), world.path("mine/recipes/more/files/far")).unwrap();
    for (field, recipe) in [
        ("files[0].source", "files = [{ path = \"/x\", source = \"link\" }]"),
        ("trees[0]", "trees = [\"far\"]"),
        ("images[0].archive", "images = [{ archive = \"link\" }]"),
        ("images[0].archive", "images = [{ archive = \"../../../../precious\" }]"),
        ("units.install[0]", "units = { install = [\"repo:../precious\"] }"),
    ] {
        world.write("mine/recipes/more/more.toml", recipe.as_bytes());
        let error = format!("{:#}", world.lock().and_then(|l| world.bake(&l, "cache", "out")).unwrap_err());
        assert!(error.contains(&format!("more.toml:1: {field}: ")), "{error}");
    }
    world.write("mine/recipes/more/more.toml", b"\nunknown = 1\n");
    let error = format!("{:#}", world.lock().unwrap_err());
    assert!(error.contains("mine/recipes/more/more.toml:2: unknown: unknown field"), "{error}");
}
