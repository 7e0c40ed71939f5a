//! Accepting streams: no more at once than there are places, and never for longer than the node runs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Out of descriptors: the streams that end will give some back.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves each stream in a task of its own until shut down. Who finds no place waits in the kernel's queue; a stream
/// has its place for as long as it holds the permit.
pub async fn accept<F>(
    listener: TcpListener,
    places: usize,
    shutdown: CancellationToken,
    serve: impl Fn(TcpStream, OwnedSemaphorePermit) -> F,
) where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(places));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (serving, shutdown) = (serve(stream, place), shutdown.clone());
        tokio::spawn(async move {
            let served = tokio::select! {
                () = shutdown.cancelled() => Ok(()),
                served = serving => served,
            };
            if let Err(error) = served {
                tracing::debug!(error = format!("{error:#}"), "stream ended");
            }
        });
    }
}
