//! The listening sockets of a node, all bound before anything else happens: a port that is taken is found out while
//! there is nothing to undo.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpSocket};

use crate::config::Config;

/// Connections that wait in the kernel.
const BACKLOG: u32 = 512;

/// Bound and listening.
pub struct Ports {
    /// The API.
    pub api: TcpListener,
    /// The kubelet.
    pub kubelet: TcpListener,
    /// The status pages.
    pub status: TcpListener,
}

impl Ports {
    /// Binds all of them on every address.
    pub fn bind(config: &Config) -> Result<Self> {
        Ok(Self {
            api: bind(config.api_port, "the API")?,
            kubelet: bind(config.kubelet_port, "the kubelet")?,
            status: bind(config.status_port, "the status page")?,
        })
    }
}

/// Binds one address.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind(port: u16, what: &str) -> Result<TcpListener> {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let bound = match listen(both) {
        // A kernel without IPv6.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
            listen(SocketAddr::from(([0, 0, 0, 0], port)))
        }
        other => other,
    };
    bound.with_context(|| {
        format!(
            "port {port}, which {what} needs, cannot be used (ss -ltnp 'sport = :{port}' shows who has it)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = bind(0, "a test").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = format!("{:#}", bind(port, "the API").unwrap_err());
        assert!(
            error.contains(&port.to_string()) && error.contains("the API") && error.contains("in use"),
            "{error}"
        );
    }
}
