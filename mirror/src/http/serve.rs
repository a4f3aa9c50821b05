//! Connections: accepted, limited, served, drained.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::sendfile::{Direct, Pieces};
use super::tls::Certificates;
use super::{Peer, Service};

/// A client has this long to send its headers, and for its part of a TLS handshake.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that takes nothing of an answer for this long is gone; unpacking a layer can stall a pull for minutes.
const WRITE_TIMEOUT: Duration = Duration::from_mins(5);
const MAX_HEADERS: usize = 100;
const MAX_HEADER_BYTES: usize = 64 * 1024;
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
                let task = connection.serve(service.clone(), options.clone(), graceful.watcher());
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
    stream: Box<dyn Stream>,
    peer: Peer,
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
                let direct = Direct::new(stream);
                let pieces = direct.pieces();
                Ok(Connection::new(direct, peer.to_string(), Some(pieces)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Connection::new(stream, "unix".into(), None))
            }
        }
    }
}

impl Connection {
    fn new(stream: impl Stream + 'static, name: String, pieces: Option<Pieces>) -> Self {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_TIMEOUT));
        Self {
            stream: Box::new(Box::pin(stream)),
            peer: Peer {
                name: name.into(),
                pieces,
            },
        }
    }

    async fn serve(self, service: Service, options: Options, watcher: Watcher) {
        let Self { stream, mut peer } = self;
        if options.tls.is_some() {
            peer.pieces = None;
        }
        let Some(stream) = secured(stream, &options).await else {
            return;
        };
        let spoke = Arc::new(AtomicBool::new(false));
        let (seen, builder) = (Arc::clone(&spoke), builder(options.http2));
        let answer = service_fn(move |request: http::Request<_>| {
            seen.store(true, Ordering::Relaxed);
            let (service, peer, (parts, _)) = (service.clone(), peer.clone(), request.into_parts());
            // Boxed, as a connection keeps room for what this returns while it is idle too.
            Box::pin(async move { Ok::<_, Infallible>(service.answer(parts, &peer).await) })
        });
        let connection = builder.serve_connection(TokioIo::new(stream), answer);
        let mut connection = pin!(watcher.watch(connection.into_owned()));
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            () = silent(&spoke) => return,
        };
        if let Err(error) = ended {
            debug!(%error, "a connection ended early");
        }
    }
}

/// Returns when a client has connected but asked nothing in time, and never once it has.
async fn silent(spoke: &AtomicBool) {
    tokio::time::sleep(HEADER_TIMEOUT).await;
    if spoke.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

async fn secured(stream: Box<dyn Stream>, options: &Options) -> Option<Box<dyn Stream>> {
    let Some(tls) = &options.tls else {
        return Some(stream);
    };
    match tokio::time::timeout(HEADER_TIMEOUT, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => Some(Box::new(stream)),
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
