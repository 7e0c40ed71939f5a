//! Work inside another network namespace. A thread's namespace is the thread's own, so the work gets a thread that is
//! thrown away afterwards; a worker of the runtime must never change its namespace.

use crate::Error;
use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

/// An open network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Namespace(Arc<File>);

impl Namespace {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file =
            File::open(path).map_err(|error| Error::file("open the network namespace", path, error))?;
        Ok(Self(Arc::new(file)))
    }

    /// For netlink attributes; valid while `self` lives.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Runs `work` in the namespace, with a netlink connection of that namespace.
    pub(crate) async fn run<T, F, Fut>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Handle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>>,
    {
        let namespace = Arc::clone(&self.0);
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("netns".into())
            .spawn(move || {
                // The receiver is gone only when the caller gave up waiting.
                let _ = done.send(inside(&namespace, work));
            })
            .map_err(Error::Namespace)?;
        result.await.map_err(|_| Error::Namespace(io::Error::other("the thread panicked")))?
    }
}

fn inside<T, F, Fut>(namespace: &File, work: F) -> Result<T, Error>
where
    F: FnOnce(Handle) -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Namespace(errno.into()))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(Error::Namespace)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::socket)?;
        tokio::spawn(connection);
        work(handle).await
    })
}
