//! Connections: accepted, limited, served, drained.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::sendfile::Direct;
use super::tls::Certificates;
use super::{Peer, Service};

/// A client has this long to send its headers, and for its part of a TLS handshake.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that takes nothing of an answer for this long is gone; unpacking a layer can stall a pull for minutes.
const WRITE_TIMEOUT: Duration = Duration::from_mins(5);
const MAX_HEADERS: usize = 100;
/// More is refused with 431: at 64 KiB at the latest, as hyper looks at this limit between reads, which double.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// What HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// After an accept error that closing connections may mend (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where clients connect.
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A socket in the file system.
    Unix(UnixListener),
}

/// How connections are served.
#[derive(Clone)]
pub struct Options {
    /// The certificate, where TLS is on.
    pub tls: Option<Arc<Certificates>>,
    /// Whether HTTP/2 is offered.
    pub http2: bool,
    /// How long requests in flight may take after the shutdown began.
    pub drain: Duration,
}

/// Serves until `shutdown`, then lets requests in flight end.
pub async fn serve(listener: Listener, service: Service, options: Options, shutdown: CancellationToken) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok(connection) => {
                let task = connection.serve(
                    service.clone(),
                    options.clone(),
                    graceful.watcher(),
                    shutdown.clone(),
                );
                tokio::spawn(task);
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(options.drain, graceful.shutdown())
        .await
        .is_err()
    {
        warn!("some requests did not end within the drain time; they are cut");
    }
}

/// One client's connection.
struct Connection {
    socket: Socket,
    peer: Peer,
}

/// What was accepted.
enum Socket {
    Tcp(Direct),
    Unix(UnixStream),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Listener {
    async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Small answers must not wait for the acknowledgement of the one before.
                stream.set_nodelay(true)?;
                let stream = Direct::new(stream);
                let peer = Peer {
                    name: peer.to_string().into(),
                    pieces: Some(stream.pieces()),
                };
                Ok(Connection {
                    socket: Socket::Tcp(stream),
                    peer,
                })
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Connection {
                    socket: Socket::Unix(stream),
                    peer: Peer::named("unix"),
                })
            }
        }
    }
}

impl Socket {
    /// Waits for the first bytes, or the end, and says whether they may become HTTP/2's. Who would find that out while
    /// it reads HTTP/1 makes a buffer of twice the size, and an idle connection keeps it.
    async fn may_begin_http2(&self) -> io::Result<bool> {
        let mut first = [0; PREFACE.len()];
        match self {
            Self::Tcp(stream) => {
                let length = stream.peek(&mut first).await?;
                Ok(PREFACE.starts_with(&first[..length]))
            }
            Self::Unix(stream) => stream.readable().await.map(|()| true),
        }
    }

    /// For a client that is cut off once it takes nothing for too long.
    fn bounded(self) -> Box<dyn Stream> {
        fn bounded(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Box<dyn Stream> {
            let mut stream = TimeoutWriter::new(stream);
            stream.set_timeout(Some(WRITE_TIMEOUT));
            Box::new(Box::pin(stream))
        }
        match self {
            Self::Tcp(stream) => bounded(stream),
            Self::Unix(stream) => bounded(stream),
        }
    }
}

impl Connection {
    /// Keeps little for a client that says nothing: each step has its memory when it begins, and no step that of
    /// another.
    async fn serve(self, service: Service, options: Options, watcher: Watcher, shutdown: CancellationToken) {
        let (spoke, deadline) = (Arc::new(AtomicBool::new(false)), Instant::now() + HEADER_TIMEOUT);
        let heard = Arc::clone(&spoke);
        let talk = async move {
            let http2 = tokio::select! {
                biased;
                http2 = self.socket.may_begin_http2() => http2.ok()?,
                () = shutdown.cancelled_owned() => return None,
            };
            let (mut peer, stream) = (self.peer, self.socket.bounded());
            let (stream, http2) = match options.tls {
                Some(tls) => {
                    peer.pieces = None;
                    Box::pin(secured(stream, tls)).await?
                }
                None => (stream, http2 && options.http2),
            };
            let ended = talk(stream, peer, service, http2, watcher, heard).await;
            ended
                .inspect_err(|error| debug!(%error, "a connection ended early"))
                .ok()
        };
        tokio::select! {
            biased;
            _ = talk => {}
            () = silent(&spoke, deadline) => {}
        }
    }
}

/// Returns when a client has connected but asked nothing in time, and never once it has.
async fn silent(spoke: &AtomicBool, deadline: Instant) {
    tokio::time::sleep_until(deadline).await;
    if spoke.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Answers requests until the client or `watcher` ends it. As one piece of memory that is as large as it has to be: a
/// future that is made within another one has its place in there once for each step of being made.
fn talk(
    stream: Box<dyn Stream>,
    peer: Peer,
    service: Service,
    http2: bool,
    watcher: Watcher,
    spoke: Arc<AtomicBool>,
) -> Pin<Box<dyn Future<Output = Ended> + Send>> {
    let answer = service_fn(move |request: http::Request<_>| {
        spoke.store(true, Ordering::Relaxed);
        let (service, peer, (parts, _)) = (service.clone(), peer.clone(), request.into_parts());
        // Boxed, as a connection keeps room for what this returns while it is idle too.
        Box::pin(async move { Ok::<_, Infallible>(service.answer(parts, &peer).await) })
    });
    let connection = builder(http2)
        .serve_connection(TokioIo::new(stream), answer)
        .into_owned();
    Box::pin(watcher.watch(connection))
}

/// The stream within TLS, and whether HTTP/2 was agreed on.
async fn secured(stream: Box<dyn Stream>, tls: Arc<Certificates>) -> Option<(Box<dyn Stream>, bool)> {
    match tokio::time::timeout(HEADER_TIMEOUT, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Some((Box::new(stream), http2))
        }
        Ok(Err(error)) => {
            debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

fn builder(http2: bool) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if !http2 {
        builder = builder.http1_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        // What stands in for a piece must reach the stream as it is.
        .writev(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEADER_TIMEOUT)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX));
    builder
}
