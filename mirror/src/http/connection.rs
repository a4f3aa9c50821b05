//! Connections: accepts, limits, serves and drains them.

mod limit;
mod sendfile;
mod timeouts;
pub mod tls;
mod tracked_io;
mod workers;

use std::convert::Infallible;
use std::io;
use std::net;
use std::os::unix;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::{Peer, Service};
use crate::client_address::ClientAddress;
use limit::{ConnectionLimit, ConnectionSlot};
pub(super) use sendfile::SendfileQueue;
use sendfile::SendfileStream;
use timeouts::{ConnectionTimeouts, LIMITS};
use tls::Certificates;
use tracked_io::{ConnectionState, TrackedBody, TrackedIo};
use workers::Workers;

const MAX_HEADERS: usize = 100;
/// The limit of a request header, answered with 431: at 64 KiB at the latest, because hyper checks it between reads, which
/// double in size.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// The connection preface of HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The pause after an error of accept that closing connections may end (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The time that a runtime should leave to blocking work at its end: a disk that hangs, or a password check, must not
/// keep the process.
pub const BLOCKING_GRACE: Duration = Duration::from_secs(2);

/// The time that an idle connection has to end if it has to make room, because a request may be on its way.
const EVICTION_GRACE: Duration = Duration::from_secs(1);

/// A socket that clients connect to.
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A socket in the file system.
    Unix(UnixListener),
}

/// The settings of connections.
#[derive(Clone)]
pub struct ConnectionOptions {
    /// The certificate; `None` without TLS.
    pub tls: Option<Arc<Certificates>>,
    /// `true` if the server offers HTTP/2.
    pub http2: bool,
    /// The time limit for requests in flight after the shutdown began.
    pub drain: Duration,
    /// The most connections at once.
    pub max_connections: usize,
}

/// Serves until `shutdown`, then waits for requests in flight.
pub async fn serve(
    listener: Listener,
    service: Service,
    options: ConnectionOptions,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    let limit = ConnectionLimit::new(options.max_connections);
    // TLS is CPU work that the shared runtime balances between threads.
    let mut workers = options.tls.is_none().then(Workers::start);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok(accepted) => {
                let slot = tokio::select! {
                    slot = limit.enter(accepted.address(), &shutdown) => slot,
                    () = shutdown.cancelled() => break,
                };
                let serving = accepted.serve(service.clone(), options.clone(), slot);
                let serving = connections.track_future(serving);
                match &mut workers {
                    Some(workers) => workers.spawn(serving),
                    None => drop(tokio::spawn(serving)),
                }
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection: trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(options.drain, connections.wait())
        .await
        .is_err()
    {
        warn!("requests did not end within http.draintimeout: their connections are closed");
    }
    if let Some(workers) = workers {
        workers.stop().await;
    }
}

/// An accepted socket that no worker drives yet.
enum Accepted {
    Tcp(net::TcpStream, net::SocketAddr),
    Unix(unix::net::UnixStream),
}

/// One client's connection.
struct Connection {
    socket: Socket,
    peer: Peer,
}

/// The socket of a connection.
enum Socket {
    Tcp(SendfileStream),
    Unix(UnixStream),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Accepted::Tcp(stream.into_std()?, peer))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Unix(stream.into_std()?))
            }
        }
    }
}

impl Accepted {
    /// Serves the connection on the worker that calls this.
    async fn serve(self, service: Service, options: ConnectionOptions, slot: ConnectionSlot) {
        match self.connection() {
            Ok(connection) => connection.serve(service, options, &slot).await,
            Err(error) => debug!(%error, "cannot set up a connection"),
        }
    }

    fn address(&self) -> ClientAddress {
        ClientAddress::of_ip(match self {
            Self::Tcp(_, peer) => Some(peer.ip()),
            Self::Unix(_) => None,
        })
    }

    fn connection(self) -> io::Result<Connection> {
        match self {
            Self::Tcp(stream, peer) => {
                // Small responses must not wait for the acknowledgement of the previous one.
                stream.set_nodelay(true)?;
                let stream = SendfileStream::new(TcpStream::from_std(stream)?);
                let peer = Peer {
                    sendfile: Some(stream.queue()),
                    ..Peer::named(&peer.to_string())
                };
                Ok(Connection {
                    socket: Socket::Tcp(stream),
                    peer,
                })
            }
            Self::Unix(stream) => Ok(Connection {
                socket: Socket::Unix(UnixStream::from_std(stream)?),
                peer: Peer::named("unix"),
            }),
        }
    }
}

impl Socket {
    /// Waits for the first bytes, or the end, and returns `true` if they may begin an HTTP/2 preface. hyper's own
    /// detection would allocate a double-size buffer that an idle connection keeps.
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

    fn stream(self) -> Box<dyn Stream> {
        match self {
            Self::Tcp(stream) => Box::new(stream),
            Self::Unix(stream) => Box::new(stream),
        }
    }
}

impl Connection {
    /// Serves the connection to its end. Idle connections stay small: each stage allocates its state when it starts.
    async fn serve(self, service: Service, options: ConnectionOptions, slot: &ConnectionSlot) {
        let accepted = Instant::now();
        let opened = tokio::select! {
            biased;
            opened = tokio::time::timeout(LIMITS.header, self.open(options)) => opened,
            () = slot.closing.cancelled() => return,
        };
        if let Ok(Some(opened)) = opened
            && let Err(error) = opened.drive(service, accepted, slot).await
        {
            debug!(%error, "a connection failed");
        }
    }

    /// Waits for the first bytes of HTTP, inside TLS if it is on; `None` if the connection ends before.
    async fn open(self, options: ConnectionOptions) -> Option<Opened> {
        let http2 = self.socket.may_begin_http2().await.ok()?;
        let (mut peer, stream) = (self.peer, self.socket.stream());
        let (stream, http2) = match options.tls {
            Some(tls) => {
                peer.sendfile = None;
                Box::pin(accept_tls(stream, tls)).await?
            }
            None => (stream, http2 && options.http2),
        };
        Some(Opened { stream, peer, http2 })
    }
}

/// A connection on which HTTP starts.
struct Opened {
    stream: Box<dyn Stream>,
    peer: Peer,
    /// `true` if the client may speak HTTP/2.
    http2: bool,
}

type ConnectionResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Opened {
    /// Answers requests until the client closes the connection, exceeds a time limit, or the server stops. The connection
    /// is one allocation of minimal size: a future that is built inside another one occupies space there once for each
    /// step of its construction.
    fn drive(
        self,
        service: Service,
        accepted: Instant,
        slot: &ConnectionSlot,
    ) -> impl Future<Output = ConnectionResult> + use<> {
        let (peer, progress) = (self.peer, Arc::clone(&slot.progress));
        let (stream, timeouts) = (
            TrackedIo {
                stream: self.stream,
                progress: Arc::clone(&progress),
            },
            ConnectionTimeouts::new(Arc::clone(&progress), LIMITS, accepted),
        );
        let answer = service_fn(move |request: http::Request<_>| {
            let (service, peer, (parts, _)) = (service.clone(), peer.clone(), request.into_parts());
            let mut request = progress.begin_request(parts.version);
            // Boxed, because an idle connection keeps space for this future too.
            Box::pin(async move {
                let response = service.answer(parts, &peer).await;
                request.on_response();
                Ok::<_, Infallible>(response.map(|body| TrackedBody { body, request }))
            })
        });
        let connection = builder(self.http2)
            .serve_connection(TokioIo::new(stream), answer)
            .into_owned();
        drive_to_end(Box::pin(connection), timeouts, slot.closing.clone())
    }
}

/// Drives a connection to its end. After a shutdown or an idle timeout, active requests end first; a connection that has to
/// make room has [`EVICTION_GRACE`].
async fn drive_to_end<C>(
    mut connection: Pin<Box<C>>,
    mut timeouts: ConnectionTimeouts,
    closing: CancellationToken,
) -> ConnectionResult
where
    C: GracefulConnection<Error = Box<dyn std::error::Error + Send + Sync>>,
{
    let mut ending = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => return ended,
            () = closing.cancelled(), if !ending => {
                if timeouts.is_reading_request() {
                    return Ok(());
                }
                // A request may have come since the connection was chosen: it ends like any other.
                if timeouts.is_evicted() && !timeouts.is_processing() {
                    connection.as_mut().graceful_shutdown();
                    let ended = tokio::time::timeout(EVICTION_GRACE, connection);
                    return Box::pin(ended).await.unwrap_or(Ok(()));
                }
            },
            state = timeouts.expired() => if ending || state != ConnectionState::Idle {
                return Ok(());
            }
        }
        ending = true;
        connection.as_mut().graceful_shutdown();
    }
}

/// Performs the TLS handshake. Returns the stream inside TLS, and `true` if ALPN selected HTTP/2.
async fn accept_tls(stream: Box<dyn Stream>, tls: Arc<Certificates>) -> Option<(Box<dyn Stream>, bool)> {
    match tls.acceptor().accept(stream).await {
        Ok(stream) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Some((Box::new(stream), http2))
        }
        Err(error) => {
            debug!(%error, "a TLS handshake failed");
            None
        }
    }
}

fn builder(http2: bool) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if !http2 {
        builder = builder.http1_only();
    }
    builder
        .http1()
        // Its timeout would end idle connections too; see `timeouts`.
        .header_read_timeout(None)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        // Some clients compare header names as text, and know those that Go, and so Distribution, writes.
        .title_case_headers(true)
        // A placeholder of sendfile must reach the stream as it is.
        .writev(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(LIMITS.header)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX));
    builder
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;
    use tokio::io::AsyncWriteExt;

    use super::timeouts::ConnectionLimits;
    use super::tracked_io::ConnectionProgress;
    use super::*;

    #[tokio::test]
    async fn shutdown_does_not_wait_for_unfinished_header() {
        let (mut client, stream) = tokio::io::duplex(64);
        client.write_all(b"GET /v2/ HT").await.unwrap();
        let (progress, hour) = (Arc::<ConnectionProgress>::default(), Duration::from_hours(1));
        let limits = ConnectionLimits {
            header: hour,
            idle: hour,
            progress: hour,
        };
        let timeouts = ConnectionTimeouts::new(Arc::clone(&progress), limits, Instant::now());
        let answer = service_fn(async |_| Ok::<_, Infallible>(http::Response::new(Full::<Bytes>::default())));
        let connection = builder(false)
            .serve_connection(TokioIo::new(TrackedIo { stream, progress }), answer)
            .into_owned();
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let ended = drive_to_end(Box::pin(connection), timeouts, shutdown);
        let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
        assert!(ended.is_ok(), "it waits");
    }
}
