//! Images: hostile and odd layers, archives, and a real registry.

// A panic is how a test says that something failed.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use common::{Tar, TestImage, World, base_layer, sha256};
use runtime::{Error, Registries, Registry, RegistryAuth, Runtime};
use tar::EntryType;

/// Loads one image and gives the folders of its layers, lowest first, or what was wrong.
async fn layers(w: &World, image: &TestImage) -> Result<Vec<PathBuf>, Error> {
    let archive = w.dir.path().join("image.tar");
    std::fs::write(&archive, image.docker_save("t:1")).unwrap();
    let image = w.runtime.load(&archive).await?.remove(0);
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(w.dir.path().join("lib/images/images.json")).unwrap()).unwrap();
    let record = record.as_array().unwrap().iter().find(|r| r["image"]["id"] == image.id.as_str()).unwrap();
    let names = record["layers"].as_array().unwrap();
    Ok(names.iter().map(|n| w.dir.path().join("lib/layers").join(n.as_str().unwrap())).collect())
}

fn layer_folders(w: &World) -> Vec<String> {
    let entries = std::fs::read_dir(w.dir.path().join("lib/layers")).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn every_kind_of_entry_is_unpacked() {
    let w = World::empty(Registries::default()).await;
    let lower =
        Tar::new().dir("opt", 0o2750).dir("gone", 0o755).file("gone/x", 0o644, b"").file("old", 0o644, b"");
    // `opt/new` has no entry for its folder, and `deep` exists nowhere.
    let upper = Tar::new()
        .owned("opt/new", 0o4755, 33, 34, b"suid")
        .file("deep/er/file", 0o600, b"d")
        .link("hard", "opt/new", true)
        .link("soft", "../../../etc/passwd", false)
        .device("null", EntryType::Char, 1, 3)
        .device("pipe", EntryType::Fifo, 0, 0)
        .file(".wh.old", 0o644, b"")
        .file(".wh.gone", 0o644, b"")
        .dir("gone", 0o700)
        .dir("swap", 0o755)
        .file("swap/inner", 0o644, b"")
        .file("swap", 0o644, b"now a file")
        .file("opaque/.wh..wh..opq", 0o644, b"")
        // cap_net_raw+ep in its revision 2 form.
        .xattr(
            "ping",
            0o755,
            "security.capability",
            &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )
        .xattr("sly", 0o755, "trusted.overlay.redirect", b"/etc");
    let dirs = layers(&w, &TestImage::new(vec![lower.bytes(), upper.bytes()])).await.unwrap();
    let at = |name: &str| dirs[1].join(name);
    assert_eq!(mode(&at("opt")), 0o2750, "an implicit parent looks as below");
    assert_eq!(mode(&at("deep/er")), 0o755);
    let suid = std::fs::metadata(at("opt/new")).unwrap();
    assert_eq!((mode(&at("opt/new")), suid.uid(), suid.gid(), suid.mtime()), (0o4755, 33, 34, 1_600_000_000));
    assert_eq!(suid.ino(), std::fs::metadata(at("hard")).unwrap().ino());
    assert_eq!(std::fs::read_link(at("soft")).unwrap(), Path::new("../../../etc/passwd"));
    let kind = |name: &str| std::fs::symlink_metadata(at(name)).unwrap();
    assert!(kind("null").file_type().is_char_device() && kind("null").rdev() == 0x103);
    assert!(kind("pipe").file_type().is_fifo());
    assert!(kind("old").file_type().is_char_device() && kind("old").rdev() == 0, "a whiteout");
    assert_eq!(std::fs::read(at("swap")).unwrap(), b"now a file");
    let xattr = |name: &str, attribute: &str| {
        let mut value = [0; 64];
        rustix::fs::lgetxattr(at(name), attribute, &mut value).map(|n| value[..n].to_vec())
    };
    assert_eq!(xattr("gone", "trusted.overlay.opaque").unwrap(), b"y", "whited out and made anew");
    assert_eq!(xattr("opaque", "trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(xattr("ping", "security.capability").unwrap().len(), 20);
    assert!(
        xattr("sly", "trusted.overlay.redirect").is_err(),
        "overlayfs' own attributes are not the image's to set"
    );
    w.end().await;
}

#[tokio::test]
async fn hostile_layers_leave_nothing_outside() {
    let w = World::empty(Registries::default()).await;
    let canary = w.dir.path().join("canary");
    let outside = canary.display().to_string();
    let huge = {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(1 << 40);
        Tar::new().raw("huge", header, b"little")
    };
    for (what, tar) in [
        ("dot dot", Tar::new().file("../../../canary", 0o644, b"x")),
        ("dot dot inside", Tar::new().file("a/../../canary", 0o644, b"x")),
        ("hard link out", Tar::new().link("h", "../../../../../../etc/passwd", true)),
        (
            "hard link to the host's file",
            Tar::new().link("h", "/etc/passwd", true).file("h", 0o644, b"owned"),
        ),
        ("through a link that leads nowhere", Tar::new().link("l", &outside, false).file("l/x", 0o644, b"x")),
        ("whiteout of the parent", Tar::new().file("a/.wh...", 0o644, b"")),
        ("the root as a file", Tar::new().file(".", 0o644, b"x")),
        ("a file as a folder", Tar::new().file("f", 0o644, b"").file("f/x", 0o644, b"")),
        ("longer than it is", huge),
    ] {
        let error = layers(&w, &TestImage::new(vec![tar.bytes()])).await;
        assert!(error.is_err(), "{what} was taken");
        assert!(!canary.exists(), "{what} got out");
        assert!(
            layer_folders(&w).iter().all(|n| n.ends_with(".size")),
            "{what} left {:?}",
            layer_folders(&w)
        );
    }
    assert!(w.runtime.images().await.is_empty());
    // Links to folders are followed, but only inside.
    std::fs::create_dir(&canary).unwrap();
    let through = Tar::new()
        .link("l", &outside, false)
        .dir(outside.trim_start_matches('/'), 0o755)
        .file("l/x", 0o644, b"in");
    let dirs = layers(&w, &TestImage::new(vec![through.bytes()])).await.unwrap();
    assert!(!canary.join("x").exists());
    assert_eq!(std::fs::read(dirs[0].join(outside.trim_start_matches('/')).join("x")).unwrap(), b"in");
    w.end().await;
}

#[tokio::test]
async fn archives_of_every_form_load() {
    let w = World::empty(Registries::default()).await;
    let image = TestImage::new(vec![Tar::new().file("a", 0o644, b"one").bytes()]);
    let plain = image.docker_save("forms:1");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest);
    for (name, bytes) in
        [("plain", plain.clone()), ("gzip", gz.finish().unwrap()), ("zstd", zstd), ("oci", oci(&image))]
    {
        let path = w.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let loaded = w.runtime.load(&path).await.unwrap();
        assert_eq!(loaded[0].id, image.id(), "{name}");
        assert_eq!(loaded[0].size, 3);
    }
    let found = w.runtime.image("forms:1").await.unwrap();
    assert_eq!(found.env, ["PATH=/bin", "FROM_IMAGE=yes"]);
    assert_eq!(found.tags, ["docker.io/library/forms:1", "docker.io/library/oci:2"]);
    assert_eq!(w.runtime.image(&found.id).await.unwrap(), found);

    let mut foreign = image.clone();
    foreign.architecture = "s390x".into();
    let path = w.dir.path().join("foreign");
    std::fs::write(&path, foreign.docker_save("foreign:1")).unwrap();
    let error = w.runtime.load(&path).await.unwrap_err();
    assert!(
        matches!(&error, Error::WrongArchitecture { offered, .. } if offered == "linux/s390x"),
        "{error}"
    );
    std::fs::write(&path, b"no archive at all, but long enough to look at").unwrap();
    assert!(w.runtime.load(&path).await.is_err());
    let mut lying = image.docker_save("lying:1");
    let at = lying.windows(3).position(|w| w == b"one").unwrap();
    lying[at] = b'O';
    std::fs::write(&path, lying).unwrap();
    w.runtime.remove_image(&found.id).await.unwrap();
    let error = w.runtime.load(&path).await.unwrap_err().to_string();
    assert!(error.contains("layer content is"), "{error}");
    assert!(
        layer_folders(&w).iter().all(|n| n.ends_with(".size")),
        "unused layers stay: {:?}",
        layer_folders(&w)
    );
    w.end().await;
}

/// The image as an OCI layout, behind an index of two platforms.
fn oci(image: &TestImage) -> Vec<u8> {
    let config = image.config_json();
    let descriptor = |media: &str, bytes: &[u8]| serde_json::json!({ "mediaType": media, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len() });
    let layers: Vec<_> =
        image.layers.iter().map(|l| descriptor("application/vnd.oci.image.layer.v1.tar", l)).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": layers,
    })
    .to_string();
    let mut own = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    own["platform"] = serde_json::json!({ "architecture": image.architecture, "os": "linux" });
    let mut other = own.clone();
    other["digest"] = format!("sha256:{}", "0".repeat(64)).into();
    other["platform"]["architecture"] = "s390x".into();
    let inner = serde_json::json!({ "schemaVersion": 2, "manifests": [other, own] }).to_string();
    let mut entry = descriptor("application/vnd.oci.image.index.v1+json", inner.as_bytes());
    entry["annotations"] = serde_json::json!({ "io.containerd.image.name": "docker.io/library/oci:2" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let mut tar = Tar::new().file("index.json", 0o644, index.as_bytes());
    let blobs = [&config, &manifest.into_bytes(), &inner.into_bytes()];
    for blob in blobs.into_iter().chain(&image.layers) {
        tar = tar.file(&format!("blobs/sha256/{}", sha256(blob)), 0o644, blob);
    }
    tar.bytes()
}

/// A registry of its own, with a folder that the tests may damage.
struct RealRegistry {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl RealRegistry {
    async fn start() -> Self {
        Self::start_with("").await
    }

    /// With a user `bramble` whose password is `secret`.
    async fn start_private() -> Self {
        Self::start_with("auth:\n  htpasswd:\n    realm: r\n    path: ").await
    }

    async fn start_with(auth: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {free}\n",
            root.display()
        );
        let users = dir.path().join("users");
        std::fs::write(&users, "bramble:$2b$04$6VqT9YZGjrdgb/ZUn.dunO9K61kIe0/vfaCjx.UDvL0tST1PlhVt2\n")
            .unwrap();
        let auth = if auth.is_empty() { String::new() } else { format!("{auth}{}\n", users.display()) };
        std::fs::write(&config, text + &auth).unwrap();
        let child = std::process::Command::new("docker-registry")
            .args(["serve".as_ref(), config.as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("apt-get install docker-registry");
        common::eventually("the registry listens", async || tokio::net::TcpStream::connect(free).await.ok())
            .await;
        Self { child, host: free.to_string(), _dir: dir, root }
    }

    /// Registries without users do not mind the credentials.
    fn request(&self, method: &str, url: &str) -> reqwest::RequestBuilder {
        let method = method.parse().unwrap();
        reqwest::Client::new().request(method, url).basic_auth("bramble", Some("secret"))
    }

    async fn put(&self, path: &str, media: &str, bytes: Vec<u8>) {
        let url = format!("http://{}/v2/{path}", self.host);
        let answer =
            self.request("PUT", &url).header("content-type", media).body(bytes).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }

    async fn put_blob(&self, repository: &str, bytes: Vec<u8>) {
        let url = format!("http://{}/v2/{repository}/blobs/uploads/", self.host);
        let answer = self.request("POST", &url).send().await.unwrap();
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        let digest = format!("sha256:{}", sha256(&bytes));
        let join = if location.contains('?') { '&' } else { '?' };
        let answer = self
            .request("PUT", &format!("{location}{join}digest={digest}"))
            .body(bytes)
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }

    /// Pushes an image, gzipped; gives the digest of its manifest and of its last layer's blob.
    async fn push(&self, repository: &str, tag: &str, image: &TestImage) -> (String, String) {
        let config = image.config_json();
        let mut layers = Vec::new();
        let mut last = String::new();
        for layer in &image.layers {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(layer).unwrap();
            let gz = gz.finish().unwrap();
            last = sha256(&gz);
            layers.push(serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": format!("sha256:{last}"), "size": gz.len(),
            }));
            self.put_blob(repository, gz).await;
        }
        let media = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media, "layers": layers,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{}", sha256(&config)), "size": config.len(),
            },
        })
        .to_string()
        .into_bytes();
        self.put_blob(repository, config).await;
        let digest = format!("sha256:{}", sha256(&manifest));
        self.put(&format!("{repository}/manifests/{tag}"), media, manifest).await;
        (digest, last)
    }

    fn blob(&self, hex: &str) -> PathBuf {
        self.root.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    fn registries(&self) -> Registries {
        let mut registries = Registries::default();
        registries.hosts.insert(self.host.clone(), Registry { insecure: true, ..Default::default() });
        let mirrors = vec![format!("http://{}", self.host)];
        registries.hosts.insert("docker.io".into(), Registry { mirrors, ..Default::default() });
        registries
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_from_a_registry() {
    let registry = RealRegistry::start().await;
    let w = World::empty(registry.registries()).await;
    let second = Tar::new().file("hello", 0o644, b"from the second layer\n").bytes();
    let image = TestImage::new(vec![base_layer(), second]);
    let (digest, _) = registry.push("a/b", "1", &image).await;
    let name = format!("{}/a/b:1", registry.host);

    // Two at a time share the work, and are told how far it is.
    let (sender, mut progress) = tokio::sync::mpsc::channel(1000);
    let (one, two) =
        tokio::join!(w.runtime.pull(&name, None, Some(sender)), w.runtime.pull(&name, None, None));
    let pulled = one.unwrap();
    assert_eq!(pulled, two.unwrap());
    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.tags, [name.as_str()]);
    assert_eq!(pulled.digests, [format!("{}/a/b@{digest}", registry.host)]);
    let mut last = None;
    while let Some(p) = progress.recv().await {
        last = Some(p);
    }
    let last = last.unwrap();
    assert_eq!(last.layers, (2, 2));
    assert_eq!(last.bytes.0, last.bytes.1);
    assert_eq!(
        std::fs::read_dir(w.dir.path().join("lib/images/ingest")).unwrap().count(),
        0,
        "blobs are not kept"
    );

    // It runs, with both layers.
    let mut spec = w.spec("a", "cat /hello");
    spec.image = pulled.id.clone();
    assert_eq!(w.run(spec).await, (0, "from the second layer\n".into()));
    let error = w.runtime.remove_image(&pulled.id).await.unwrap_err();
    assert!(error.to_string().contains("used by a container"), "{error}");

    let by_digest = w.runtime.pull(&format!("{}/a/b@{digest}", registry.host), None, None).await.unwrap();
    assert_eq!(by_digest.id, pulled.id);
    // What is here is not fetched again: the registry has lost it.
    let (_, base) = registry.push("base", "1", &TestImage::new(vec![base_layer()])).await;
    let third = Tar::new().file("hello", 0o644, b"another").bytes();
    registry.push("c", "1", &TestImage::new(vec![base_layer(), third])).await;
    std::fs::remove_file(registry.blob(&base)).unwrap();
    w.runtime.pull(&format!("{}/c:1", registry.host), None, None).await.unwrap();
    assert_eq!(layer_folders(&w).iter().filter(|n| !n.ends_with(".size")).count(), 3);
    registry.push("base", "1", &TestImage::new(vec![base_layer()])).await;

    // Through a mirror, under docker.io's own name.
    registry.push("library/nginx", "latest", &image).await;
    let mirrored = w.runtime.pull("nginx", None, None).await.unwrap();
    assert!(mirrored.tags.contains(&"docker.io/library/nginx:latest".to_owned()));
    w.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_occur_twice_or_in_another_order_do_not_wait_for_each_other() {
    let registry = RealRegistry::start().await;
    let w = World::empty(registry.registries()).await;
    let layer = |name: &str| Tar::new().file(name, 0o644, b"x").bytes();
    let (a, b, c) = (layer("a"), layer("b"), layer("c"));
    // What builders write for a step that changes no file is one and the same layer each time.
    registry.push("twice", "1", &TestImage::new(vec![a.clone(), b.clone(), a.clone(), c, a.clone()])).await;
    registry.push("one", "1", &TestImage::new(vec![a.clone(), b.clone()])).await;
    registry.push("other", "1", &TestImage::new(vec![b, a])).await;
    let pulls = ["twice", "one", "other"].map(|name| {
        let (runtime, name) = (w.runtime.clone(), format!("{}/{name}:1", registry.host));
        tokio::spawn(async move { runtime.pull(&name, None, None).await.map(drop) })
    });
    for pull in pulls {
        let done = tokio::time::timeout(std::time::Duration::from_secs(30), pull).await;
        done.expect("the pull hangs").unwrap().unwrap();
    }
    assert_eq!(std::fs::read_dir(w.dir.path().join("lib/images/ingest")).unwrap().count(), 0);
    w.end().await;
}

#[tokio::test]
async fn headers_that_fill_the_memory_are_refused() {
    let w = World::empty(Registries::default()).await;
    let comment = vec![b'x'; 4 << 20];
    let long = || Tar::new().extended("comment", &comment).file("f", 0o644, b"x");
    let error = layers(&w, &TestImage::new(vec![long().bytes()])).await.unwrap_err();
    assert!(error.to_string().contains("headers of more than"), "{error}");
    // The archive around the layers is read by the agent itself.
    let archive = w.dir.path().join("image.tar");
    let image = TestImage::new(vec![Tar::new().file("f", 0o644, b"x").bytes()]).docker_save("t:1");
    std::fs::write(&archive, [&long().bytes()[..], &image[..]].concat()).unwrap();
    let error = w.runtime.load(&archive).await.unwrap_err();
    assert!(error.to_string().contains("headers of more than"), "{error}");
    w.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_gets_wrong_is_refused() {
    let registry = RealRegistry::start().await;
    let w = World::empty(registry.registries()).await;
    let at = |rest: &str| format!("{}/{rest}", registry.host);
    let layer = |content: &[u8]| Tar::new().file("f", 0o644, content).bytes();

    let error = w.runtime.pull(&at("no/such:1"), None, None).await.unwrap_err();
    assert!(matches!(error, Error::ImageNotFound { .. }), "{error}");

    let mut foreign = TestImage::new(vec![layer(b"x")]);
    foreign.architecture = "riscv64".into();
    let (foreign_digest, _) = registry.push("f", "single", &foreign).await;
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": foreign_digest,
        "size": std::fs::metadata(registry.blob(&foreign_digest[7..])).unwrap().len(),
        "platform": { "architecture": "riscv64", "os": "linux" },
    }]});
    registry
        .put("f/manifests/index", "application/vnd.oci.image.index.v1+json", index.to_string().into_bytes())
        .await;
    for tag in ["single", "index"] {
        let error = w.runtime.pull(&at(&format!("f:{tag}")), None, None).await.unwrap_err();
        let Error::WrongArchitecture { wanted, offered, .. } = &error else { panic!("{error}") };
        assert!(wanted.starts_with("linux/") && offered == "linux/riscv64", "{error}");
    }

    let (_, blob) = registry.push("corrupt", "1", &TestImage::new(vec![layer(b"precious")])).await;
    let path = registry.blob(&blob);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0xff;
    std::fs::write(&path, &bad).unwrap();
    let error = w.runtime.pull(&at("corrupt:1"), None, None).await.unwrap_err().to_string();
    assert!(error.contains("does not verify"), "{error}");
    assert!(w.runtime.images().await.is_empty());
    // Mended, it is taken; and a partial download is taken up where it stopped.
    std::fs::write(&path, &good).unwrap();
    std::fs::write(w.dir.path().join(format!("lib/images/ingest/{blob}.partial")), &good[..good.len() / 2])
        .unwrap();
    w.runtime.pull(&at("corrupt:1"), None, None).await.unwrap();

    drop(registry);
    let error = w.runtime.pull("docker.io/x/y:1@sha256:zz", None, None).await.unwrap_err();
    assert!(matches!(error, Error::InvalidReference { .. }), "{error}");
    w.end().await;
}

#[tokio::test]
async fn a_registry_that_is_down_is_named() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut registries = Registries::default();
    registries.hosts.insert(free.to_string(), Registry { insecure: true, ..Default::default() });
    let w = World::empty(registries).await;
    let error = w.runtime.pull(&format!("{free}/x:1"), None, None).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Pull { .. }) && text.contains("refused"), "{text}");
    w.end().await;
}

#[tokio::test]
async fn after_a_power_cut_only_whole_things_count() {
    let mut w = World::new().await;
    let layers = w.dir.path().join("lib/layers");
    let name = layer_folders(&w).into_iter().find(|n| !n.ends_with(".size")).unwrap();
    // A layer that was being unpacked, one that no image has, and a download that ended.
    std::fs::create_dir_all(layers.join(format!(".tmp-{name}/half"))).unwrap();
    std::fs::create_dir(layers.join("0123456789abcdef01234567")).unwrap();
    std::fs::write(w.dir.path().join("lib/images/ingest/abc"), b"x").unwrap();
    w.reopen().await;
    assert_eq!(layer_folders(&w).len(), 2, "{:?}", layer_folders(&w));
    assert!(!w.dir.path().join("lib/images/ingest/abc").exists());
    assert!(w.runtime.image("base:1").await.is_some());
    // An image that lost a layer is not offered.
    std::fs::remove_dir_all(layers.join(name)).unwrap();
    w.reopen().await;
    assert!(w.runtime.images().await.is_empty());
    w.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_used() {
    let registry = RealRegistry::start_private().await;
    let w = World::empty(registry.registries()).await;
    registry.push("p", "1", &TestImage::new(vec![Tar::new().file("a", 0o644, b"").bytes()])).await;
    let name = format!("{}/p:1", registry.host);
    let auth = |password: &str| Some(RegistryAuth { username: "bramble".into(), password: password.into() });
    for wrong in [None, auth("guess")] {
        let error = w.runtime.pull(&name, wrong, None).await.unwrap_err();
        assert!(matches!(&error, Error::Pull { why, .. } if why.contains("401")), "{error}");
    }
    w.runtime.pull(&name, auth("secret"), None).await.unwrap();
    w.end().await;
}
