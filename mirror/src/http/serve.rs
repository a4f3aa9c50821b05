//! Connections: accepted, limited, served, drained.

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

use super::patience::{Answering, LIMITS, Patience, Phase, Progress, Watched};
use super::sendfile::Direct;
use super::threads::Threads;
use super::tls::Certificates;
use super::{Peer, Service};

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
    let connections = TaskTracker::new();
    // TLS is work enough to be shared out.
    let mut threads = options.tls.is_none().then(Threads::start);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok(accepted) => {
                let serving = accepted.serve(service.clone(), options.clone(), shutdown.clone());
                let serving = connections.track_future(serving);
                match &mut threads {
                    Some(threads) => threads.spawn(serving),
                    None => drop(tokio::spawn(serving)),
                }
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
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
        warn!("some requests did not end within the drain time; they are cut");
    }
    if let Some(threads) = threads {
        threads.end().await;
    }
}

/// A connection that no thread drives yet.
enum Accepted {
    Tcp(net::TcpStream, net::SocketAddr),
    Unix(unix::net::UnixStream),
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
    /// To be driven where it is to stay.
    async fn serve(self, service: Service, options: Options, shutdown: CancellationToken) {
        match self.connection() {
            Ok(connection) => connection.serve(service, options, shutdown).await,
            Err(error) => debug!(%error, "a connection ended at once"),
        }
    }

    fn connection(self) -> io::Result<Connection> {
        match self {
            Self::Tcp(stream, peer) => {
                // Small answers must not wait for the acknowledgement of the one before.
                stream.set_nodelay(true)?;
                let stream = Direct::new(TcpStream::from_std(stream)?);
                let peer = Peer {
                    name: peer.to_string().into(),
                    pieces: Some(stream.pieces()),
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

    fn stream(self) -> Box<dyn Stream> {
        match self {
            Self::Tcp(stream) => Box::new(stream),
            Self::Unix(stream) => Box::new(stream),
        }
    }
}

impl Connection {
    /// Keeps little for a client that says nothing: each step has its memory when it begins, and no step that of
    /// another.
    async fn serve(self, service: Service, options: Options, shutdown: CancellationToken) {
        let began = Instant::now();
        let opened = tokio::select! {
            biased;
            opened = tokio::time::timeout(LIMITS.header, self.open(options)) => opened,
            () = shutdown.cancelled() => return,
        };
        if let Ok(Some(opened)) = opened
            && let Err(error) = opened.talk(service, began, shutdown).await
        {
            debug!(%error, "a connection ended early");
        }
    }

    /// Waits for the client to say something, within TLS where that is on; `None` where it does not get there.
    async fn open(self, options: Options) -> Option<Opened> {
        let http2 = self.socket.may_begin_http2().await.ok()?;
        let (mut peer, stream) = (self.peer, self.socket.stream());
        let (stream, http2) = match options.tls {
            Some(tls) => {
                peer.pieces = None;
                Box::pin(secured(stream, tls)).await?
            }
            None => (stream, http2 && options.http2),
        };
        Some(Opened { stream, peer, http2 })
    }
}

/// A connection on which HTTP begins.
struct Opened {
    stream: Box<dyn Stream>,
    peer: Peer,
    /// Whether it may be HTTP/2.
    http2: bool,
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Opened {
    /// Answers requests until the client ends it, takes too long, or the server ends. The connection is one piece of
    /// memory that is as large as it has to be: a future that is made within another one has its place in there once for
    /// each step of being made.
    fn talk(
        self,
        service: Service,
        began: Instant,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Ended> {
        let (peer, progress) = (self.peer, Arc::<Progress>::default());
        let (stream, patience) = (
            Watched {
                stream: self.stream,
                progress: Arc::clone(&progress),
            },
            Patience::new(Arc::clone(&progress), LIMITS, began),
        );
        let answer = service_fn(move |request: http::Request<_>| {
            let (service, peer, (parts, _)) = (service.clone(), peer.clone(), request.into_parts());
            let mut request = progress.request(parts.version);
            // Boxed, as a connection keeps room for what this returns while it is idle too.
            Box::pin(async move {
                let response = service.answer(parts, &peer).await;
                request.is_served();
                Ok::<_, Infallible>(response.map(|body| Answering { body, request }))
            })
        });
        let connection = builder(self.http2)
            .serve_connection(TokioIo::new(stream), answer)
            .into_owned();
        attend(Box::pin(connection), patience, shutdown)
    }
}

/// Drives a connection to its end. The server's end, or too long a pause, lets what is under way end first.
async fn attend<C>(mut connection: Pin<Box<C>>, mut patience: Patience, shutdown: CancellationToken) -> Ended
where
    C: GracefulConnection<Error = Box<dyn std::error::Error + Send + Sync>>,
{
    let mut ending = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => return ended,
            () = shutdown.cancelled(), if !ending => if patience.is_with_the_client() {
                return Ok(());
            },
            late = patience.over() => if ending || late != Phase::Idle {
                return Ok(());
            }
        }
        ending = true;
        connection.as_mut().graceful_shutdown();
    }
}

/// The stream within TLS, and whether HTTP/2 was agreed on.
async fn secured(stream: Box<dyn Stream>, tls: Arc<Certificates>) -> Option<(Box<dyn Stream>, bool)> {
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
        // Its time-out would end idle connections too; see `patience`.
        .header_read_timeout(None)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        // Clients that compare field names as text have only seen those of Distribution, which Go writes so.
        .title_case_headers(true)
        // What stands in for a piece must reach the stream as it is.
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

    use super::super::patience::Limits;
    use super::*;

    #[tokio::test]
    async fn the_end_waits_for_no_header_that_has_only_begun() {
        let (mut says, stream) = tokio::io::duplex(64);
        says.write_all(b"GET /v2/ HT").await.unwrap();
        let (progress, hour) = (Arc::<Progress>::default(), Duration::from_hours(1));
        let limits = Limits {
            header: hour,
            idle: hour,
            take: hour,
        };
        let patience = Patience::new(Arc::clone(&progress), limits, Instant::now());
        let answer = service_fn(async |_| Ok::<_, Infallible>(http::Response::new(Full::<Bytes>::default())));
        let connection = builder(false)
            .serve_connection(TokioIo::new(Watched { stream, progress }), answer)
            .into_owned();
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let ended = attend(Box::pin(connection), patience, shutdown);
        let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
        assert!(ended.is_ok(), "it waits");
    }
}
