//! Where a bundle comes from: a file, or a server.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{StatusCode, header};
use tokio::sync::mpsc;

/// Pieces that wait between the network and the card.
const AHEAD: usize = 16;
/// How often a broken download is taken up again without having got any further.
const RETRIES: u32 = 5;
const SILENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(2);

/// Opens a bundle for reading.
pub(crate) async fn open(from: &str) -> Result<Box<dyn Read + Send>> {
    if from.starts_with("http://") || from.starts_with("https://") {
        return Ok(Box::new(download(from, PAUSE).await?));
    }
    if from.contains("://") {
        bail!("{from}: only http and https addresses, and files, can be read");
    }
    Ok(Box::new(File::open(Path::new(from)).with_context(|| from.to_owned())?))
}

/// The body of an answer, as it comes.
#[derive(Debug)]
struct Download {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

async fn download(url: &str, pause: Duration) -> Result<Download> {
    // An error means that somebody installed one before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().connect_timeout(SILENCE).read_timeout(SILENCE).build()?;
    let first = ask(&client, url, 0).await?;
    let (sender, pieces) = mpsc::channel(AHEAD);
    let url = url.to_owned();
    tokio::spawn(async move {
        if let Err(error) = pump(&client, &url, first, &sender, pause).await {
            let error = io::Error::new(io::ErrorKind::ConnectionAborted, format!("{error:#}"));
            // When nobody reads any more, the update was refused already.
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok(Download { pieces, piece: Bytes::new() })
}

async fn ask(client: &reqwest::Client, url: &str, from: u64) -> Result<reqwest::Response> {
    let mut request = client.get(url);
    if from > 0 {
        request = request.header(header::RANGE, format!("bytes={from}-"));
    }
    let answer = request.send().await.with_context(|| format!("asking for {url}"))?;
    let expected = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    if answer.status() != expected {
        bail!("{url}: the server answers {}", answer.status());
    }
    Ok(answer)
}

/// Passes a body on; where it breaks, the rest is asked for. The bundle's checksums find what does not fit together.
async fn pump(
    client: &reqwest::Client,
    url: &str,
    first: reqwest::Response,
    to: &mpsc::Sender<io::Result<Bytes>>,
    pause: Duration,
) -> Result<()> {
    let (mut answer, mut at, mut tries) = (Some(first), 0_u64, 0);
    loop {
        let broken = match &mut answer {
            Some(answer) => match answer.chunk().await {
                Ok(Some(piece)) => {
                    at += piece.len() as u64;
                    tries = 0;
                    if to.send(Ok(piece)).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                Ok(None) => return Ok(()),
                Err(error) => anyhow::Error::from(error).context(format!("{url}: the download broke off")),
            },
            None => match ask(client, url, at).await {
                Ok(next) => {
                    answer = Some(next);
                    continue;
                }
                Err(error) => error,
            },
        };
        tries += 1;
        if tries > RETRIES || at == 0 {
            return Err(broken);
        }
        answer = None;
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const BODY: &[u8] = b"0123456789abcdef";

    /// A server that sends at most `each` bytes of the body on a connection, for `answers` connections.
    async fn server(each: usize, answers: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for _ in 0..answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap().to_ascii_lowercase();
                let from = request.split_once("range: bytes=").map(|(_, r)| r.split('-').next().unwrap());
                let rest = &BODY[from.map_or(0, |from| from.parse().unwrap())..];
                let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", rest.len());
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&rest[..rest.len().min(each)]).await.unwrap();
            }
        });
        format!("http://{address}/bundle")
    }

    async fn fetch(url: &str) -> io::Result<Vec<u8>> {
        let mut from = download(url, Duration::ZERO).await.unwrap();
        let all = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            from.read_to_end(&mut all).map(|_| all)
        });
        all.await.unwrap()
    }

    #[tokio::test]
    async fn a_broken_download_is_taken_up_again() {
        assert_eq!(fetch(&server(5, 4).await).await.unwrap(), BODY);
    }

    #[tokio::test]
    async fn a_server_that_stays_away_ends_it() {
        let error = fetch(&server(5, 2).await).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn other_addresses_and_missing_files() {
        assert!(open("ftp://x/y").await.err().unwrap().to_string().contains("only http"));
        assert!(open("/nowhere/x").await.err().unwrap().to_string().contains("/nowhere/x"));
    }
}
