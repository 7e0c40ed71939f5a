//! A pod's volumes: made before its containers, undone after them.
//!
//! What an earlier agent made is found and kept: making is idempotent, and a folder that is mounted is not mounted twice.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, KeyToPath, Pod,
    ServiceAccountTokenProjection, Volume,
};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::env::{self, NodeCapacity, optional};
use crate::files::PodDir;
use crate::limits;
use crate::sources::{Data, Sources};

const FILE_MODE: i32 = 0o644;
/// How long a token lasts unless the pod says otherwise.
const TOKEN_SECONDS: i64 = 3600;

/// What volumes are made of.
pub struct Maker<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Where it lives.
    pub dir: &'a PodDir,
    /// ConfigMaps and Secrets.
    pub sources: &'a dyn Sources,
    /// The node's address.
    pub host_ip: &'a str,
    /// The node's size.
    pub node: NodeCapacity,
    /// Whether file systems may be mounted (memory for secrets and for emptyDirs that ask for it).
    pub mounts: bool,
}

impl Maker<'_> {
    /// Makes all of them. The error is for the user.
    pub async fn make_all(&self) -> Result<(), String> {
        let Some(spec) = &self.pod.spec else { return Ok(()) };
        for volume in spec.volumes.iter().flatten() {
            let failed =
                |why: String| format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name);
            self.make(volume).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn make(&self, volume: &Volume) -> Result<(), String> {
        let dir = self.dir.volume(plain_name(&volume.name)?);
        if let Some(source) = &volume.host_path {
            return host_path(source);
        }
        if let Some(source) = &volume.empty_dir {
            self.empty_dir(source, &dir).map_err(|e| e.to_string())?;
        } else if let Some((files, memory)) = self.contents(volume).await? {
            self.folder(&dir, memory.then_some("")).map_err(|e| e.to_string())?;
            write_all(&dir, &files).map_err(|e| e.to_string())?;
        } else {
            return Err("this kind of volume is not supported on this node".to_owned());
        }
        let group = self.pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.fs_group);
        match group.and_then(|group| u32::try_from(group).ok()) {
            Some(group) => give_to(&dir, group).map_err(|e| format!("fsGroup: {e}")),
            None => Ok(()),
        }
    }

    fn empty_dir(&self, source: &EmptyDirVolumeSource, dir: &Path) -> io::Result<()> {
        let memory = source.medium.as_deref() == Some("Memory");
        let limit = source.size_limit.as_ref().and_then(limits::whole).filter(|size| *size > 0);
        let options = limit.map_or_else(String::new, |size| format!("size={size}"));
        self.folder(dir, memory.then_some(options.as_str()))?;
        // The mode is Kubernetes': any user of any container may write.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777))
    }

    fn folder(&self, dir: &Path, tmpfs: Option<&str>) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        if let Some(options) = tmpfs.filter(|_| self.mounts)
            && !is_mount_point(dir)?
        {
            let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            rustix::mount::mount("tmpfs", dir, "tmpfs", flags, options.as_c_str())?;
        }
        Ok(())
    }

    /// The files of a volume that is made of API objects, and whether they are to be kept off the disk.
    async fn contents(&self, volume: &Volume) -> Result<Option<(Vec<File>, bool)>, String> {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut files = Vec::new();
        if let Some(source) = &volume.config_map {
            let data = optional(self.sources.config_map(namespace, &source.name).await, source.optional)?;
            select(data, &source.items, source.default_mode, source.optional, &mut files)?;
            return Ok(Some((files, false)));
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let data = optional(self.sources.secret(namespace, name).await, source.optional)?;
            select(data, &source.items, source.default_mode, source.optional, &mut files)?;
            return Ok(Some((files, true)));
        }
        if let Some(source) = &volume.downward_api {
            self.downward(source.items.iter().flatten(), source.default_mode, &mut files)?;
            return Ok(Some((files, false)));
        }
        let Some(source) = &volume.projected else { return Ok(None) };
        let mode = source.default_mode;
        for part in source.sources.iter().flatten() {
            if let Some(part) = &part.config_map {
                let data = optional(self.sources.config_map(namespace, &part.name).await, part.optional)?;
                select(data, &part.items, mode, part.optional, &mut files)?;
            } else if let Some(part) = &part.secret {
                let data = optional(self.sources.secret(namespace, &part.name).await, part.optional)?;
                select(data, &part.items, mode, part.optional, &mut files)?;
            } else if let Some(part) = &part.downward_api {
                self.downward(part.items.iter().flatten(), mode, &mut files)?;
            } else if let Some(part) = &part.service_account_token {
                files.push(self.token(part, mode).await?);
            } else {
                return Err("a projected source of this kind is not supported on this node".to_owned());
            }
        }
        Ok(Some((files, true)))
    }

    async fn token(&self, source: &ServiceAccountTokenProjection, mode: Option<i32>) -> Result<File, String> {
        let audience = source.audience.as_deref().unwrap_or_default();
        let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
        let token = self.sources.token(self.pod, audience, seconds).await?;
        File::new(&source.path, token.into_bytes(), mode)
    }

    /// Puts newer tokens in the place of those that will not last. A volume that is not there any more stays away.
    pub async fn renew_tokens(&self) -> Result<(), String> {
        for (volume, source, mode) in tokens(self.pod) {
            let file = self.token(source, mode).await?;
            let dir = self.dir.volume(plain_name(volume)?);
            let there = fs::read(dir.join(&file.path));
            if there.is_ok_and(|old| old != file.content) {
                write_all(&dir, &[file]).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    fn downward<'i>(
        &self,
        items: impl Iterator<Item = &'i DownwardAPIVolumeFile>,
        mode: Option<i32>,
        files: &mut Vec<File>,
    ) -> Result<(), String> {
        for item in items {
            let text = if let Some(reference) = &item.field_ref {
                // A volume is made before the pod has its address, so the API does not offer it here either.
                env::field(self.pod, &reference.field_path, self.host_ip, "")
                    .ok_or_else(|| format!("unsupported fieldPath: {}", reference.field_path))?
            } else if let Some(reference) = &item.resource_field_ref {
                let name = reference.container_name.as_deref().unwrap_or_default();
                let spec = self.pod.spec.as_ref();
                let container = spec.and_then(|spec| crate::plan::container(spec, name));
                let container = container.ok_or_else(|| format!("container {name} not found"))?;
                let divisor = reference.divisor.as_ref().map(|divisor| divisor.0.as_str());
                env::resource(&container, &reference.resource, divisor, &self.node)
                    .ok_or_else(|| format!("unsupported container resource: {}", reference.resource))?
            } else {
                continue;
            };
            files.push(File::new(&item.path, text.into_bytes(), item.mode.or(mode))?);
        }
        Ok(())
    }
}

/// The tokens that a pod's volumes hold: volume, token, mode.
pub fn tokens(pod: &Pod) -> impl Iterator<Item = (&str, &ServiceAccountTokenProjection, Option<i32>)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projected = volumes.filter_map(|volume| Some((volume, volume.projected.as_ref()?)));
    projected.flat_map(|(volume, source)| {
        let tokens = source.sources.iter().flatten().filter_map(|part| part.service_account_token.as_ref());
        tokens.map(move |token| (volume.name.as_str(), token, source.default_mode))
    })
}

struct File {
    path: PathBuf,
    content: Vec<u8>,
    mode: u32,
}

impl File {
    fn new(path: &str, content: Vec<u8>, mode: Option<i32>) -> Result<File, String> {
        let mode = u32::try_from(mode.unwrap_or(FILE_MODE)).unwrap_or(0o644) & 0o777;
        Ok(File { path: relative(path)?, content, mode })
    }
}

/// A path that stays where it is put.
fn relative(path: &str) -> Result<PathBuf, String> {
    let parts = Path::new(path).components();
    let plain = path.len() <= 4096
        && !path.is_empty()
        && parts.into_iter().all(|p| matches!(p, Component::Normal(_)));
    if plain { Ok(PathBuf::from(path)) } else { Err(format!("invalid path {path:?}")) }
}

fn plain_name(name: &str) -> Result<&str, String> {
    if relative(name)?.components().count() == 1 { Ok(name) } else { Err(format!("invalid name {name:?}")) }
}

fn select(
    data: Option<Data>,
    items: &Option<Vec<KeyToPath>>,
    mode: Option<i32>,
    may_miss: Option<bool>,
    files: &mut Vec<File>,
) -> Result<(), String> {
    let Some(mut data) = data else { return Ok(()) };
    let Some(items) = items.as_ref().filter(|items| !items.is_empty()) else {
        for (key, content) in data {
            files.push(File::new(&key, content, mode)?);
        }
        return Ok(());
    };
    for item in items {
        match data.remove(&item.key) {
            Some(content) => files.push(File::new(&item.path, content, item.mode.or(mode))?),
            None if may_miss == Some(true) => {}
            None => return Err(format!("references non-existent key: {}", item.key)),
        }
    }
    Ok(())
}

fn write_all(dir: &Path, files: &[File]) -> io::Result<()> {
    for file in files {
        let path = dir.join(&file.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let temporary = path.with_extension("bramble-new");
        fs::write(&temporary, &file.content)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(file.mode))?;
        fs::rename(&temporary, &path)?;
    }
    Ok(())
}

fn host_path(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let found = fs::metadata(path).map(|meta| meta.file_type());
    let check = |good: bool, what: &str| {
        if good { Ok(()) } else { Err(format!("hostPath type check failed: {} is not {what}", source.path)) }
    };
    match (kind, &found) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", Err(_)) => {
            fs::create_dir_all(path).map_err(|e| format!("{}: {e}", source.path))
        }
        ("FileOrCreate", Err(_)) => fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map(drop)
            .map_err(|e| format!("{}: {e}", source.path)),
        ("Directory" | "DirectoryOrCreate", found) => {
            check(found.as_ref().is_ok_and(|t| t.is_dir()), "a directory")
        }
        ("File" | "FileOrCreate", found) => check(found.as_ref().is_ok_and(|t| t.is_file()), "a file"),
        ("Socket", found) => check(found.as_ref().is_ok_and(|t| t.is_socket()), "a socket file"),
        ("CharDevice", found) => {
            check(found.as_ref().is_ok_and(|t| t.is_char_device()), "a character device")
        }
        ("BlockDevice", found) => check(found.as_ref().is_ok_and(|t| t.is_block_device()), "a block device"),
        (other, _) => Err(format!("hostPath type {other:?} is unknown")),
    }
}

fn give_to(path: &Path, group: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_symlink() {
        return Ok(());
    }
    chown(path, None, Some(group))?;
    let extra = if meta.is_dir() { 0o2070 } else { 0o060 };
    fs::set_permissions(path, fs::Permissions::from_mode(meta.permissions().mode() | extra))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to(&entry?.path(), group)?;
        }
    }
    Ok(())
}

fn is_mount_point(dir: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = dir.parent().unwrap_or(dir);
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

/// Where a mount's source is: below the volume, or the volume itself.
///
/// A subPath is walked without following any link and then pinned by a bind mount of what was reached: another container
/// of the pod that swaps a folder for a link meanwhile gains nothing.
pub fn sub_path(volume: &Path, sub: &str, pin: &Path, mounts: bool) -> Result<PathBuf, String> {
    let sub_dir = relative(sub)?;
    let reached = walk(volume, &sub_dir).map_err(|e| format!("failed to prepare subPath {sub:?}: {e}"))?;
    if !mounts {
        return Ok(volume.join(sub_dir));
    }
    let pinned = (|| -> io::Result<()> {
        let is_dir =
            rustix::fs::fstat(&reached).map(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir())?;
        unmount(pin)?;
        if is_dir {
            fs::create_dir_all(pin)?;
        } else {
            fs::create_dir_all(pin.parent().unwrap_or(pin))?;
            fs::OpenOptions::new().create(true).append(true).open(pin)?;
        }
        rustix::mount::mount_bind(format!("/proc/self/fd/{}", reached.as_raw_fd()), pin)?;
        Ok(())
    })();
    pinned.map(|()| pin.to_owned()).map_err(|e| format!("failed to prepare subPath {sub:?}: {e}"))
}

fn walk(volume: &Path, sub: &Path) -> io::Result<OwnedFd> {
    let safe = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(volume, flags | OFlags::DIRECTORY, Mode::empty())?;
    for part in sub.components() {
        let part = part.as_os_str();
        at = match rustix::fs::openat2(&at, part, flags, Mode::empty(), safe) {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755))?;
                rustix::fs::openat2(&at, part, flags, Mode::empty(), safe)?
            }
            other => other?,
        };
    }
    Ok(at)
}

/// Unmounts all that is mounted at a path. What cannot be is an error: it may be the host's, and must not be removed
/// with the pod's folder.
fn unmount(path: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not being a mount point is the usual case. Who may not unmount has not mounted either.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT | rustix::io::Errno::PERM) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes a pod's mounts and volumes away; hostPath volumes are not below its folder and so stay.
pub fn unmake(dir: &PodDir) -> io::Result<()> {
    for below in ["subpaths", "volumes"] {
        let below = dir.path().join(below);
        let entries = match fs::read_dir(&below) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            unmount(&entry?.path())?;
        }
        fs::remove_dir_all(&below)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Data);

    #[async_trait::async_trait]
    impl Sources for Fixed {
        async fn config_map(&self, _: &str, name: &str) -> Result<Data, String> {
            if name == "there" { Ok(self.0.clone()) } else { Err(format!("configmap \"{name}\" not found")) }
        }
        async fn secret(&self, namespace: &str, name: &str) -> Result<Data, String> {
            self.config_map(namespace, name).await
        }
        async fn token(&self, _: &Pod, audience: &str, seconds: i64) -> Result<String, String> {
            Ok(format!("{audience} {seconds} {}", self.0.len()))
        }
    }

    async fn make(volumes: serde_json::Value, state: &Path) -> (PodDir, Result<(), String>) {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}},
            "spec": {"containers": [], "volumes": volumes},
        }))
        .unwrap();
        let dir = PodDir::new(state, "u");
        let sources = Fixed(Data::from([("k".to_owned(), b"v".to_vec()), ("l".to_owned(), b"w".to_vec())]));
        let maker = Maker {
            pod: &pod,
            dir: &dir,
            sources: &sources,
            host_ip: "192.0.2.1",
            node: NodeCapacity::default(),
            mounts: false,
        };
        let made = maker.make_all().await;
        (dir, made)
    }

    #[tokio::test]
    async fn volumes_hold_what_they_name() {
        let state = tempfile::tempdir().unwrap();
        let volumes = serde_json::json!([
            {"name": "e", "emptyDir": {}},
            {"name": "c", "configMap": {"name": "there", "items": [{"key": "k", "path": "d/f", "mode": 256}]}},
            {"name": "o", "configMap": {"name": "missing", "optional": true}},
            {"name": "p", "projected": {"sources": [
                {"secret": {"name": "there"}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}},
        ]);
        let (dir, made) = make(volumes, state.path()).await;
        made.unwrap();
        assert_eq!(fs::read(dir.volume("c").join("d/f")).unwrap(), b"v");
        assert_eq!(fs::metadata(dir.volume("c").join("d/f")).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::read(dir.volume("p").join("l")).unwrap(), b"w");
        assert_eq!(fs::read(dir.volume("p").join("labels")).unwrap(), b"a=\"b\"");
        assert_eq!(fs::metadata(dir.volume("e")).unwrap().permissions().mode() & 0o777, 0o777);
        assert!(dir.volume("o").is_dir());
        unmake(&dir).unwrap();
        assert!(!dir.volume("c").exists());
    }

    #[tokio::test]
    async fn tokens_are_renewed_in_place() {
        let state = tempfile::tempdir().unwrap();
        let volumes = serde_json::json!([{"name": "t", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600, "audience": "vault"}}]}}]);
        let (dir, made) = make(volumes.clone(), state.path()).await;
        made.unwrap();
        let file = dir.volume("t").join("token");
        assert_eq!(fs::read(&file).unwrap(), b"vault 600 2");
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"spec": {"containers": [], "volumes": volumes}}))
                .unwrap();
        let sources = Fixed(Data::new());
        let node = NodeCapacity::default();
        let maker = Maker { pod: &pod, dir: &dir, sources: &sources, host_ip: "", node, mounts: false };
        maker.renew_tokens().await.unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"vault 600 0");
        // A volume that is gone does not come back.
        unmake(&dir).unwrap();
        maker.renew_tokens().await.unwrap();
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn what_is_missing_or_escapes_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let table = [
            (
                serde_json::json!({"name": "c", "configMap": {"name": "missing"}}),
                "configmap \"missing\" not found",
            ),
            (
                serde_json::json!({"name": "c", "configMap": {"name": "there", "items": [{"key": "k", "path": "../x"}]}}),
                "invalid path",
            ),
            (serde_json::json!({"name": "../c", "emptyDir": {}}), "invalid"),
            (
                serde_json::json!({"name": "h", "hostPath": {"path": "/no-such", "type": "Directory"}}),
                "type check",
            ),
        ];
        for (volume, expect) in table {
            let why = make(serde_json::json!([volume]), state.path()).await.1.unwrap_err();
            assert!(why.contains(expect), "{why}");
        }
    }

    #[test]
    fn a_sub_path_follows_no_link() {
        let state = tempfile::tempdir().unwrap();
        let volume = state.path().join("v");
        fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("link")).unwrap();
        let pin = state.path().join("pin");
        assert!(sub_path(&volume, "link", &pin, false).is_err());
        assert!(sub_path(&volume, "link/passwd", &pin, false).is_err());
        assert!(sub_path(&volume, "../v", &pin, false).is_err());
        assert_eq!(sub_path(&volume, "a/b", &pin, false).unwrap(), volume.join("a/b"));
        assert!(volume.join("a/b").is_dir());
    }
}
