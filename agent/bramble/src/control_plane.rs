//! The Kubernetes API alone (`bramble agent --roles control-plane`): no Node, no kubelet, no pod network, as any user.
//!
//! For machines that run no pods, and for tests against outside clients: several run beside one another, each in its
//! own folder and on its own port. What was acknowledged is there again when it starts anew on the same folder.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cluster::members::Member;
use cluster::pki::{self, Authority, Pair};
use tokio::net::TcpListener;

use crate::address;
use crate::audit::AuditLog;
use crate::config::{Config, check_name};
use crate::gate::{self, News};
use crate::plane::{Founding, Given, Options, Plane, write_kubeconfig};
use crate::ports;
use crate::process;
use crate::serving::authority;
use crate::state::{Files, NodeState};

/// What this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// It serves the Kubernetes API.
    ControlPlane,
}

/// Its command line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Be this instead of a node.
    #[arg(long, value_enum)]
    roles: Vec<Role>,
    /// Where its state is kept, and its administrator's kubeconfig.
    #[arg(long, default_value = "/var/lib/bramble", requires = "roles")]
    data_dir: PathBuf,
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:6443", requires = "roles")]
    bind: SocketAddr,
    /// Services' addresses; for good when it first starts.
    #[arg(long, default_value = "10.0.0.0/24", requires = "roles")]
    service_cidr: ipnet::Ipv4Net,
    /// Users by token: a file of lines `token,user,uid,"group,group"`.
    #[arg(long, requires = "roles")]
    token_file: Option<PathBuf>,
    /// Admission plugins that are off.
    #[arg(long, value_delimiter = ',', value_name = "NAME", requires = "roles")]
    disable_admission: Vec<String>,
    #[command(flatten)]
    audit: AuditLog,
    /// Run no controllers.
    #[arg(long, requires = "roles")]
    no_controllers: bool,
    /// Run no scheduler.
    #[arg(long, requires = "roles")]
    no_scheduler: bool,
}

impl Args {
    /// Whether this is asked for.
    pub fn is_wanted(&self) -> bool {
        !self.roles.is_empty()
    }

    fn options(&self) -> Result<Options> {
        let tokens = match &self.token_file {
            Some(path) => {
                let named = || format!("--token-file {}", path.display());
                let text = std::fs::read_to_string(path).with_context(named)?;
                apiserver::StaticTokens::parse(&text).map_err(anyhow::Error::msg).with_context(named)?
            }
            None => apiserver::StaticTokens::default(),
        };
        let unknown =
            self.disable_admission.iter().find(|name| !apiserver::ADMISSION.contains(&name.as_str()));
        if let Some(name) = unknown {
            bail!(
                "--disable-admission: admission plugin {name:?} is unknown; there are {}",
                apiserver::ADMISSION.join(", ")
            );
        }
        Ok(Options {
            controllers: !self.no_controllers,
            scheduler: !self.no_scheduler,
            addresses: vec![advertised(self.bind.ip())],
            tokens,
            disabled_admission: self.disable_admission.iter().cloned().collect::<BTreeSet<_>>(),
        })
    }
}

/// What others reach an API at that listens here.
fn advertised(bound: IpAddr) -> IpAddr {
    if !bound.is_loopback() && !bound.is_unspecified() {
        return bound;
    }
    // A machine without a network has only itself.
    address::own(None).unwrap_or(std::net::Ipv4Addr::LOCALHOST.into())
}

/// Serves until told to end.
pub async fn run(args: Args) -> Result<()> {
    let options = Arc::new(args.options()?);
    let listener =
        ports::listen(args.bind).with_context(|| format!("--bind {} cannot be used", args.bind))?;
    let at = listener.local_addr()?;
    let mut config = Config::of_this_machine();
    (config.data_dir, config.api_port, config.service_cidr) = (args.data_dir, at.port(), args.service_cidr);
    // A hostname may be anything; here it is only a name in certificates.
    if check_name(&config.node_name).is_err() {
        config.node_name = "control-plane".into();
    }
    config.audit = args.audit;
    let config = Arc::new(config);
    let files = Files::new(&config.data_dir);
    let plane = resume(&config, &files, options, listener).await?;
    let begun = tokio::select! {
        begun = begin(&plane, &files, at) => begun,
        told = process::told_to_end() => {
            plane.stop().await;
            return told;
        }
    };
    if let Err(error) = begun {
        plane.stop().await;
        return Err(error);
    }
    tracing::info!(kubeconfig = %files.kubeconfig().display(), "the API is served at https://{at}");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let told = process::told_to_end().await;
    plane.stop().await;
    told
}

/// Waits until the API can answer, puts on record what is new since it last ran, and writes its administrator's
/// kubeconfig.
async fn begin(plane: &Plane, files: &Files, at: SocketAddr) -> Result<()> {
    let mut status = plane.store.status();
    status.wait_for(|status| status.leading).await?;
    let me = files.load()?.context("node.json is gone")?.member;
    for news in [News::Addresses(addresses(at)), News::Format(store::FORMAT)] {
        gate::set(&plane.store, &me.name, &me.key, &news).await?;
    }
    write_kubeconfig(files, &authority(&plane.store)?, local(at))
}

/// How this machine itself reaches what listens here.
fn local(at: SocketAddr) -> SocketAddr {
    match at.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (std::net::Ipv4Addr::LOCALHOST, at.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, at.port()).into(),
        _ => at,
    }
}

/// Goes on with what the folder holds, or begins.
async fn resume(
    config: &Arc<Config>,
    files: &Files,
    options: Arc<Options>,
    listener: TcpListener,
) -> Result<Plane> {
    let at = listener.local_addr()?;
    let Some(state) = files.load()? else {
        return found(config, files, options, listener).await;
    };
    let range = state.settings.service_cidr;
    anyhow::ensure!(
        range == config.service_cidr,
        "{} was made with --service-cidr {range}: give that, or another --data-dir",
        config.data_dir.display()
    );
    let moved = files.update(|state| {
        (state.member.addresses, state.member.port) = (addresses(at), at.port());
        state.members = vec![state.member.clone()];
    });
    let state = moved?.context("node.json is gone")?;
    let plane = Plane::start(Given { config, files, state: &state, options, listener }, None).await?;
    Ok(plane)
}

fn addresses(at: SocketAddr) -> Vec<IpAddr> {
    let mut all = vec![advertised(at.ip())];
    if !at.ip().is_unspecified() && !all.contains(&at.ip()) {
        all.push(at.ip());
    }
    all
}

async fn found(
    config: &Arc<Config>,
    files: &Files,
    options: Arc<Options>,
    listener: TcpListener,
) -> Result<Plane> {
    empty_or_ours(&config.data_dir)?;
    files.wipe()?;
    let cluster_id = format!("{:08x}", rand::random::<u32>());
    let authority = Authority::create(&cluster_id)?;
    let (key, name) = (pki::new_key()?, config.node_name.clone());
    let (certificate, fingerprint) = authority.sign_node(&pki::request(&key)?, &name)?;
    files.save_pki(&Pair { certificate, key }, &authority.pair().certificate)?;
    let at = listener.local_addr()?;
    let member = Member {
        name,
        id: rand::random_range(1..=u64::MAX >> 1),
        addresses: addresses(at),
        port: at.port(),
        vote: true,
        key: fingerprint,
        format: store::FORMAT,
    };
    let state = NodeState {
        cluster_id,
        members: vec![member.clone()],
        member,
        settings: config.settings(),
        pod_cidr: None,
        first: true,
    };
    let given = Given { config, files, state: &state, options, listener };
    let plane = Plane::start(given, Some(Founding { authority, baked: None })).await?;
    if let Err(error) = files.save(&state) {
        plane.stop().await;
        return Err(error);
    }
    Ok(plane)
}

/// A folder that holds other things is somebody else's: a mistyped --data-dir must not cost anything.
fn empty_or_ours(folder: &Path) -> Result<()> {
    const OURS: [&str; 5] = ["raft", "pki", "kubeconfig", "node.json", "node.new"];
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("--data-dir {}", folder.display())),
    };
    for entry in entries {
        let name = entry?.file_name();
        let ours = name.to_str().is_some_and(|name| OURS.contains(&name));
        anyhow::ensure!(
            ours,
            "--data-dir {}: {name:?} in it is none of ours; give a folder of its own",
            folder.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_of_its_own_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert!(empty_or_ours(&dir.path().join("new")).is_ok());
        std::fs::create_dir(dir.path().join("raft")).unwrap();
        assert!(empty_or_ours(dir.path()).is_ok());
        std::fs::write(dir.path().join("thesis.txt"), "").unwrap();
        let why = format!("{:#}", empty_or_ours(dir.path()).unwrap_err());
        assert!(why.contains("thesis.txt"), "{why}");
    }
}
