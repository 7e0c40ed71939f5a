//! Throw-away networks: namespaces that exist only as open files of this process, so nothing is left when it ends.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use network::{Config, Network, Peer};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Ns(Arc<File>);

impl Ns {
    pub fn new() -> Ns {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root is needed");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let ns = Ns(Arc::new(std::thread::spawn(open).join().unwrap()));
        ns.ip("link set lo up");
        ns
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
    }

    pub fn command(&self, program: &str, arguments: &str) -> String {
        let output = self.run(|| Command::new(program).args(arguments.split_whitespace()).output().unwrap());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{program} {arguments}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub fn ip(&self, arguments: &str) -> String {
        self.command("ip", arguments)
    }

    pub fn listen(&self, address: &str) -> TcpListener {
        self.run(|| TcpListener::bind(address).unwrap())
    }

    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&to, PATIENCE))
    }
}

/// Joins two namespaces with a cable.
pub fn cable(a: &Ns, a_name: &str, b: &Ns, b_name: &str) {
    let (a_path, b_path) = (a.path(), b.path());
    let (a_path, b_path) = (a_path.display(), b_path.display());
    Ns::new().ip(&format!("link add {a_name} netns {a_path} type veth peer name {b_name} netns {b_path}"));
    a.ip(&format!("link set dev {a_name} up"));
    b.ip(&format!("link set dev {b_name} up"));
}

/// A switch that nodes and hosts plug into.
pub struct Lan(Ns);

impl Lan {
    pub fn new() -> Lan {
        let ns = Ns::new();
        ns.ip("link add lan type bridge");
        ns.ip("link set lan up");
        Lan(ns)
    }

    pub fn plug(&self, ns: &Ns, interface: &str, port: &str, address: &str) {
        cable(ns, interface, &self.0, port);
        self.0.ip(&format!("link set dev {port} master lan"));
        ns.ip(&format!("address add {address} dev {interface}"));
    }
}

/// A node: a namespace, and a runtime whose only worker lives in it.
pub struct Node {
    pub ns: Ns,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    pub fn new() -> Node {
        let ns = Ns::new();
        let inside = ns.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || setns(&*inside.0, CloneFlags::CLONE_NEWNET).unwrap())
            .build()
            .unwrap();
        Node { ns, runtime }
    }

    pub fn block<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.block_on(self.runtime.spawn(work)).unwrap()
    }

    pub fn start(&self, config: &Config) -> Arc<Network> {
        self.block(Network::start(config.clone())).unwrap()
    }

    pub fn attach(&self, network: &Arc<Network>, id: &'static str, pod: &Ns) -> Ipv4Addr {
        let (network, path) = (network.clone(), pod.path());
        self.block(async move { network.attach(id, &path).await }).unwrap()
    }

    pub fn detach(&self, network: &Arc<Network>, id: &'static str) {
        let network = network.clone();
        self.block(async move { network.detach(id).await }).unwrap();
    }

    pub fn set_peers(&self, network: &Arc<Network>, peers: Vec<Peer>) {
        let network = network.clone();
        self.block(async move { network.set_peers(peers).await }).unwrap();
    }
}

pub fn config(node_ip: &str, pod_cidr: &str) -> Config {
    Config {
        bridge: "bramble0".into(),
        cluster_cidr: "10.1.0.0/16".parse().unwrap(),
        service_cidr: "10.0.0.0/24".parse().unwrap(),
        pod_cidr: pod_cidr.parse().unwrap(),
        node_ip: node_ip.parse().unwrap(),
        vxlan_port: 8472,
    }
}

pub fn peer(config: &Config) -> Peer {
    Peer { name: config.node_ip.to_string(), address: config.node_ip, pod_cidr: config.pod_cidr }
}

/// The address the server sees a connection come from; some data goes both ways.
pub fn seen_from(client: &Ns, server: &Ns, to: IpAddr) -> IpAddr {
    let listener = server.listen("0.0.0.0:0");
    let port = listener.local_addr().unwrap().port();
    let mut near = client.connect((to, port).into()).unwrap();
    let (mut far, from) = listener.accept().unwrap();
    exchange(&mut near, &mut far);
    from.ip()
}

/// Sends more than a path's buffers hold one way and a word back.
pub fn exchange(near: &mut TcpStream, far: &mut TcpStream) {
    const SIZE: usize = 4 << 20;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| near.write_all(&vec![7; SIZE]).unwrap());
        let mut received = vec![0; SIZE];
        far.read_exact(&mut received).unwrap();
        assert!(received.iter().all(|byte| *byte == 7));
    });
    far.write_all(b"done").unwrap();
    let mut answer = [0; 4];
    near.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"done");
}
