//! Fetches images from registries: resolve, verify, download in parallel, unpack in order.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol, SizedStream};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth as OciAuth;
use oci_client::{Client, Reference, RegistryOperation};
use sha2::{Digest, Sha256};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::api::{Error, Image, Progress, RegistryAuth};
use crate::images::Images;
use crate::manifest::{self, Descriptor, Document, Host, ImageConfig, Manifest};
use crate::reference::{self, Endpoint};
use crate::store::Record;
use crate::{layers, sys};

/// Layers downloaded at a time for one image: enough to fill a home uplink, few enough for a card.
const PARALLEL_DOWNLOADS: usize = 3;
/// Compressed layers larger than this are refused.
const MAX_BLOB: u64 = 8 << 30;
/// A blob's download is taken up again this often, from where it stopped.
const BLOB_ATTEMPTS: u32 = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Why one endpoint did not give the image.
enum Failure {
    NotFound,
    Other(Error),
}

/// A pull from one endpoint.
struct Session {
    client: Client,
    http: reqwest::Client,
    base: String,
    remote: Reference,
    auth: OciAuth,
    name: String,
}

/// Pulls from the first endpoint that has it.
pub(crate) async fn pull(
    images: &Images,
    name: &str,
    auth: Option<RegistryAuth>,
    progress: watch::Sender<Progress>,
) -> Result<Image, Error> {
    let reference = reference::parse(name)?;
    let mut failures = Vec::new();
    let mut found_nowhere = true;
    for endpoint in reference::endpoints(&reference, &images.registries, auth) {
        let host = endpoint.host.clone();
        match from_endpoint(images, &reference, name, endpoint, &progress).await {
            Ok(image) => return Ok(image),
            Err(Failure::NotFound) => failures.push(format!("{host}: not found")),
            Err(Failure::Other(Error::Pull { why, .. })) => {
                found_nowhere = false;
                failures.push(format!("{host}: {why}"));
            }
            Err(Failure::Other(e)) => return Err(e),
        }
    }
    if found_nowhere {
        return Err(Error::ImageNotFound { reference: name.to_owned() });
    }
    Err(Error::Pull { reference: name.to_owned(), why: failures.join("; ") })
}

async fn from_endpoint(
    images: &Images,
    reference: &Reference,
    name: &str,
    endpoint: Endpoint,
    progress: &watch::Sender<Progress>,
) -> Result<Image, Failure> {
    let session = Session::new(reference, name, endpoint).map_err(Failure::Other)?;
    let (top_digest, manifest_digest, bytes, manifest) = session.manifest(reference).await?;
    let config_bytes = session.config(&manifest.config).await.map_err(Failure::Other)?;
    let fail = |why| Failure::Other(session.fail(why));
    let config = ImageConfig::parse(&config_bytes).map_err(fail)?;
    config.check(Host::current(), name).map_err(Failure::Other)?;
    if config.diff_ids().len() != manifest.layers.len() {
        return Err(fail("the manifest and the config disagree about the layers".into()));
    }
    let chain: Vec<String> =
        manifest::chain_ids(config.diff_ids()).iter().map(|id| layers::short(id)).collect();
    let _pin = images.layers.pin(chain.clone());
    session.layers(images, &manifest, &config, &chain, progress).await.map_err(Failure::Other)?;

    let mut image = config.image(manifest.config.digest.clone());
    image.tags.extend(reference::tag(reference));
    image.digests = BTreeSet::from([&top_digest, &manifest_digest])
        .into_iter()
        .map(|digest| reference::digest(reference, digest))
        .collect();
    let record = Record {
        image,
        layers: chain,
        blobs: BTreeSet::from([manifest_digest.clone(), manifest.config.digest.clone()]),
    };
    images
        .add(record, &[(&manifest_digest, &bytes), (&manifest.config.digest, &config_bytes)])
        .map_err(|e| Failure::Other(Error::Node(format!("record the image: {e}"))))
}

impl Session {
    fn new(reference: &Reference, name: &str, endpoint: Endpoint) -> Result<Self, Error> {
        let fail = |why: String| Error::Pull { reference: name.to_owned(), why };
        let mut config = ClientConfig {
            protocol: if endpoint.insecure { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("bramble/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(config.user_agent);
        if let Some(path) = &endpoint.ca_file {
            let data = std::fs::read(path).map_err(|e| fail(format!("read {}: {e}", path.display())))?;
            let ca = reqwest::Certificate::from_pem(&data).map_err(|e| fail(sys::chain(&e)))?;
            http = http.tls_certs_merge([ca]);
            let encoding = oci_client::client::CertificateEncoding::Pem;
            config.extra_root_certificates.push(oci_client::client::Certificate { encoding, data });
        }
        let scheme = if endpoint.insecure { "http" } else { "https" };
        Ok(Self {
            client: Client::try_from(config).map_err(|e| fail(sys::chain(&e)))?,
            http: http.build().map_err(|e| fail(sys::chain(&e)))?,
            base: format!("{scheme}://{}/v2/{}", endpoint.host, endpoint.repository),
            remote: Reference::with_tag(
                endpoint.host,
                endpoint.repository,
                reference.tag().unwrap_or("latest").to_owned(),
            ),
            auth: match endpoint.auth {
                Some(auth) => OciAuth::Basic(auth.username, auth.password),
                None => OciAuth::Anonymous,
            },
            name: name.to_owned(),
        })
    }

    fn fail(&self, why: String) -> Error {
        Error::Pull { reference: self.name.clone(), why }
    }

    /// Resolves the reference: digest of what it names, digest of the image manifest, its bytes, and itself parsed.
    async fn manifest(&self, reference: &Reference) -> Result<(String, String, Vec<u8>, Manifest), Failure> {
        let fail = |why| Failure::Other(self.fail(why));
        let token = self
            .client
            .auth(&self.remote, &self.auth, RegistryOperation::Pull)
            .await
            .map_err(|e| fail(sys::chain(&e)))?;
        let wanted = reference.digest().or(reference.tag()).unwrap_or("latest");
        let (top, bytes) = self.fetch_manifest(wanted, token.as_deref()).await?;
        match manifest::document(&bytes).map_err(fail)? {
            Document::Manifest(manifest) => Ok((top.clone(), top, bytes, manifest)),
            Document::Index(entries) => {
                let host = Host::current();
                let entry = manifest::resolve(host, &entries).map_err(|offered| {
                    Failure::Other(Error::WrongArchitecture {
                        reference: self.name.clone(),
                        wanted: host.name(),
                        offered,
                    })
                })?;
                let (digest, bytes) = self.fetch_manifest(&entry.digest, token.as_deref()).await?;
                match manifest::document(&bytes).map_err(fail)? {
                    Document::Manifest(manifest) => Ok((top, digest, bytes, manifest)),
                    Document::Index(_) => Err(fail("an index inside an index".into())),
                }
            }
        }
    }

    /// Gets one manifest, bounded and verified; the library reads answers of any size into memory.
    async fn fetch_manifest(&self, wanted: &str, token: Option<&str>) -> Result<(String, Vec<u8>), Failure> {
        let fail = |why: String| Failure::Other(self.fail(why));
        let mut request = self
            .http
            .get(format!("{}/manifests/{wanted}", self.base))
            .header(reqwest::header::ACCEPT, MANIFEST_TYPES);
        request = match (token, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, OciAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            _ => request,
        };
        let answer = request.send().await.map_err(|e| fail(sys::chain(&e)))?;
        match answer.status() {
            reqwest::StatusCode::NOT_FOUND => return Err(Failure::NotFound),
            status if !status.is_success() => return Err(fail(format!("the registry answered {status}"))),
            _ => {}
        }
        let bytes = collect(answer.bytes_stream(), manifest::MAX_MANIFEST).await.map_err(fail)?;
        let digest = manifest::sha256(&bytes);
        if wanted.contains(':') && wanted != digest {
            return Err(fail(format!("manifest {wanted} does not verify: it is {digest}")));
        }
        Ok((digest, bytes))
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        if !manifest::is_sha256(&descriptor.digest) {
            return Err(self.fail(format!("config digest {:?} is not a sha256 digest", descriptor.digest)));
        }
        let stream = self
            .client
            .pull_blob_stream(&self.remote, descriptor.digest.as_str())
            .await
            .map_err(|e| self.fail(format!("config: {}", sys::chain(&e))))?;
        let bytes =
            collect(stream, manifest::MAX_CONFIG).await.map_err(|e| self.fail(format!("config: {e}")))?;
        match manifest::sha256(&bytes) {
            got if got == descriptor.digest => Ok(bytes),
            got => Err(self.fail(format!("config {} does not verify: it is {got}", descriptor.digest))),
        }
    }

    /// Downloads what is missing, several at a time, and unpacks in order: a layer needs those below it.
    async fn layers(
        &self,
        images: &Images,
        manifest: &Manifest,
        config: &ImageConfig,
        chain: &[String],
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        let missing: Vec<usize> = (0..chain.len()).filter(|i| !images.layers.has(&chain[*i])).collect();
        let bytes = missing.iter().map(|i| manifest.layers[*i].size).sum();
        progress.send_modify(|p| {
            *p = Progress { layers: (chain.len() - missing.len(), chain.len()), bytes: (0, bytes) }
        });
        let slots = Arc::new(Semaphore::new(PARALLEL_DOWNLOADS));
        let mut downloads = Vec::new();
        for i in missing {
            let download = Download {
                client: self.client.clone(),
                remote: self.remote.clone(),
                descriptor: manifest.layers[i].clone(),
                dir: images.ingest_dir(),
                number: images.number(),
                progress: progress.clone(),
            };
            download.check().map_err(|e| self.fail(e))?;
            let (slots, locks) = (slots.clone(), images.blob_locks.clone());
            let task = tokio::spawn(async move {
                let _slot = slots.acquire_owned().await.map_err(|e| e.to_string())?;
                // For the download only: layers are taken up in their order, and whoever kept one of them locked while
                // waiting for another could wait for ever, for another pull or for the same blob lower down.
                let _lock = locks.lock(&download.descriptor.digest).await;
                download.run().await
            });
            downloads.push((i, AbortOnDropHandle::new(task)));
        }
        for (i, task) in downloads {
            let blob = task.await.map_err(|e| self.fail(e.to_string()))?.map_err(|e| self.fail(e))?;
            let _lock = images.layers.lock(&chain[i]).await;
            if !images.layers.has(&chain[i]) {
                let diff_id = &config.diff_ids()[i];
                images
                    .layers
                    .unpack(&chain[i], &blob.0, diff_id, &chain[..i])
                    .await
                    .map_err(|e| self.fail(e))?;
            }
            progress.send_modify(|p| p.layers.0 += 1);
        }
        Ok(())
    }
}

/// Reads a stream that must stay small.
async fn collect<E: std::error::Error>(
    stream: impl futures::Stream<Item = Result<bytes::Bytes, E>>,
    limit: u64,
) -> Result<Vec<u8>, String> {
    let mut stream = std::pin::pin!(stream);
    let mut all = Vec::new();
    while let Some(part) = stream.next().await {
        let part = part.map_err(|e| sys::chain(&e))?;
        if (all.len() + part.len()) as u64 > limit {
            return Err(format!("larger than {limit} bytes"));
        }
        all.extend_from_slice(&part);
    }
    Ok(all)
}

/// One layer's way to disk. What came so far stays in a `.partial` file and is taken up again.
struct Download {
    client: Client,
    remote: Reference,
    descriptor: Descriptor,
    dir: PathBuf,
    /// Tells the finished file from that of another pull of the same blob.
    number: u64,
    progress: watch::Sender<Progress>,
}

/// A finished download; the file goes away with it.
struct Blob(PathBuf);

impl Drop for Blob {
    fn drop(&mut self) {
        // What stays is swept up when the agent starts.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Download {
    fn check(&self) -> Result<(), String> {
        if !manifest::is_sha256(&self.descriptor.digest) {
            return Err(format!("layer digest {:?} is not a sha256 digest", self.descriptor.digest));
        }
        if self.descriptor.size > MAX_BLOB {
            return Err(format!("layer {} is larger than {MAX_BLOB} bytes", self.descriptor.digest));
        }
        Ok(())
    }

    async fn run(&self) -> Result<Blob, String> {
        let hex = self.descriptor.digest.trim_start_matches("sha256:");
        let done = Blob(self.dir.join(format!("{hex}.{}", self.number)));
        let partial = self.dir.join(format!("{hex}.partial"));
        let mut attempt = 1;
        loop {
            match self.attempt(&partial).await {
                Ok(()) => break,
                Err((why, again)) if !again || attempt == BLOB_ATTEMPTS => {
                    return Err(format!("layer {}: {why}", self.descriptor.digest));
                }
                Err((why, _)) => {
                    tracing::info!(digest = self.descriptor.digest, why, "layer download interrupted")
                }
            }
            tokio::time::sleep(Duration::from_secs(1 << attempt)).await;
            attempt += 1;
        }
        tokio::fs::rename(&partial, &done.0).await.map_err(|e| format!("keep a layer: {e}"))?;
        Ok(done)
    }

    /// The error says whether another attempt may help.
    async fn attempt(&self, partial: &Path) -> Result<(), (String, bool)> {
        let disk = |e: std::io::Error| (format!("write {}: {e}", partial.display()), false);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(partial)
            .await
            .map_err(disk)?;
        let mut hasher = Sha256::new();
        let mut have = hash_existing(&mut file, &mut hasher).await.map_err(disk)?;
        if have > self.descriptor.size {
            (hasher, have) = (restart(&mut file).await.map_err(disk)?, 0);
        }
        if have < self.descriptor.size {
            let mut stream = match self.request(have).await {
                Ok(BlobResponse::Partial(stream)) => stream,
                Ok(BlobResponse::Full(stream)) => {
                    (hasher, have) = (restart(&mut file).await.map_err(disk)?, 0);
                    stream
                }
                Err(e) => return Err((sys::chain(&e), may_pass(&e))),
            };
            self.copy(&mut stream, &mut file, &mut hasher, have).await?;
        }
        let got = manifest::finish(hasher);
        if got != self.descriptor.digest {
            let _ = tokio::fs::remove_file(partial).await;
            return Err((format!("does not verify: it is {got}"), false));
        }
        Ok(())
    }

    async fn request(&self, have: u64) -> Result<BlobResponse, OciDistributionError> {
        let digest = self.descriptor.digest.as_str();
        match have {
            0 => self.client.pull_blob_stream(&self.remote, digest).await.map(BlobResponse::Full),
            _ => self.client.pull_blob_stream_partial(&self.remote, digest, have, None).await,
        }
    }

    async fn copy(
        &self,
        stream: &mut SizedStream,
        file: &mut File,
        hasher: &mut Sha256,
        mut have: u64,
    ) -> Result<(), (String, bool)> {
        while let Some(part) = stream.next().await {
            // A mismatch that the library finds at the end is found again by our own hash, with a better text.
            let part = match part {
                Ok(part) => part,
                Err(_) if have == self.descriptor.size => break,
                Err(e) => {
                    file.flush().await.map_err(|e| (e.to_string(), false))?;
                    return Err((sys::chain(&e), true));
                }
            };
            have += part.len() as u64;
            if have > self.descriptor.size {
                return Err((format!("is larger than the {} bytes announced", self.descriptor.size), false));
            }
            hasher.update(&part);
            file.write_all(&part).await.map_err(|e| (format!("write a layer: {e}"), false))?;
            self.progress.send_modify(|p| p.bytes.0 += part.len() as u64);
        }
        file.flush().await.map_err(|e| (format!("write a layer: {e}"), false))?;
        if have < self.descriptor.size {
            return Err((format!("ended after {have} of {} bytes", self.descriptor.size), true));
        }
        Ok(())
    }
}

async fn hash_existing(file: &mut File, hasher: &mut Sha256) -> std::io::Result<u64> {
    let mut buf = vec![0; 64 << 10];
    let mut have = 0;
    loop {
        match file.read(&mut buf).await? {
            0 => return Ok(have),
            n => {
                hasher.update(&buf[..n]);
                have += n as u64;
            }
        }
    }
}

async fn restart(file: &mut File) -> std::io::Result<Sha256> {
    use tokio::io::AsyncSeekExt;
    file.set_len(0).await?;
    file.rewind().await?;
    Ok(Sha256::new())
}

/// Whether an error is of the kind that goes away by itself.
fn may_pass(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code >= 500 || *code == 429,
        _ => false,
    }
}
