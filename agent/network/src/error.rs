use ipnet::Ipv4Net;
use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong, named by what was being done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration contradicts itself or the node.
    #[error("network configuration: {0}")]
    Config(String),
    /// Not an id that can be attached.
    #[error("{0:?} cannot be the id of an attachment")]
    InvalidId(String),
    /// Every address of the node's pod CIDR is in use.
    #[error("no address is left in {0}")]
    Exhausted(Ipv4Net),
    /// An interface of that name exists and is not ours, or is of another kind.
    #[error("the interface {name} exists and is {why}")]
    Taken {
        /// The interface.
        name: String,
        /// Why it cannot be used.
        why: &'static str,
    },
    /// A link that must be there is not.
    #[error("there is no interface {0}")]
    Missing(String),
    /// A file under /proc or a network namespace.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A change of links, addresses or routes that the kernel refused.
    #[error("cannot {action}")]
    Netlink {
        /// What was being done.
        action: String,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// The masquerade rule.
    #[error("cannot install the masquerade rule")]
    Masquerade(#[source] io::Error),
    /// A netlink socket or a helper thread could not be made.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// Entering a pod's network namespace.
    #[error("cannot enter the network namespace")]
    Namespace(#[source] io::Error),
}

impl Error {
    pub(crate) fn socket(source: io::Error) -> Self {
        Self::Socket(source)
    }

    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_owned(), source }
    }
}

/// Names what was being done when netlink refused.
pub(crate) trait Doing<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, rtnetlink::Error> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Netlink { action: action(), source })
    }
}

/// Whether the kernel answered with this error number.
pub(crate) fn is_errno(error: &rtnetlink::Error, wanted: nix::errno::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -(wanted as i32))
}

/// Takes "it is not there" for success, for deletions.
pub(crate) fn absent_is_fine(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    use nix::errno::Errno;
    match result {
        Err(error)
            if [Errno::ENODEV, Errno::ESRCH, Errno::ENOENT, Errno::EADDRNOTAVAIL]
                .iter()
                .any(|errno| is_errno(&error, *errno)) =>
        {
            Ok(())
        }
        other => other,
    }
}
