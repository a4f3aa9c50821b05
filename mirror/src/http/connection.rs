//! Connections: accepts, limits, serves and drains them.

mod client_memory;
mod header_meter;
mod limit;
mod mismatch;
mod protocols;
mod sendfile;
mod socket;
mod timeouts;
pub mod tls;
mod tracked_io;
mod unread_body;
mod waiting;
mod workers;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulConnection;
use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::{Peer, Service};
use client_memory::ClientMemory;
pub(super) use client_memory::{ConnectionMemory, Permit, hold};
use header_meter::HeaderMeter;
use limit::{ConnectionLimit, ConnectionSlot};
use mismatch::ConnectionKind;
pub(super) use mismatch::ConnectionMismatch;
use protocols::builder;
pub(super) use sendfile::SendfileQueue;
use socket::{Accepted, Socket, Stream};
use timeouts::{ConnectionTimeouts, LIMITS};
use tls::Certificates;
use tracked_io::{ConnectionState, TrackedBody, TrackedIo};
use waiting::WaitingSockets;
use workers::Workers;

/// The pause after an error of accept that closing connections may end (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The time that a runtime should leave to blocking work at its end: a disk that hangs, or a password check, must not
/// keep the process.
pub const BLOCKING_GRACE: Duration = Duration::from_secs(2);

/// The time that an idle connection has to end if it has to make room, because a request may be on its way.
const EVICTION_GRACE: Duration = Duration::from_secs(1);

/// The bytes that a field of a header takes in memory, beyond its name and value.
const HEADER_FIELD: usize = 104;

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
    let mut waiting = WaitingSockets::new(Arc::clone(&limit));
    // TLS is CPU work that the shared runtime balances between threads.
    let mut workers = options.tls.is_none().then(Workers::start);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => Some(accepted),
            () = limit.freed(), if !waiting.is_empty() => None,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Some(Ok(accepted)) => waiting.push(accepted.address(), accepted),
            Some(Err(error)) => {
                warn!(%error, "cannot accept a connection: trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            None => {}
        }
        while let Some((accepted, slot)) = waiting.admit(&shutdown) {
            let serving = serve_one(accepted, service.clone(), options.clone(), slot);
            let serving = connections.track_future(serving);
            match &mut workers {
                Some(workers) => workers.spawn(serving),
                None => drop(tokio::spawn(serving)),
            }
        }
    }
    drop((listener, waiting));
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

/// One client's connection.
struct Connection {
    socket: Socket,
    peer: Peer,
}

/// Serves a connection on the worker that calls this.
async fn serve_one(accepted: Accepted, service: Service, options: ConnectionOptions, slot: ConnectionSlot) {
    match accepted.connection(&slot) {
        Ok(connection) => connection.serve(service, options, &slot).await,
        Err(error) => debug!(%error, "cannot set up a connection"),
    }
}

impl Connection {
    /// Serves the connection to its end. Idle connections stay small: each stage allocates its state when it starts.
    async fn serve(self, service: Service, options: ConnectionOptions, slot: &ConnectionSlot) {
        let accepted = Instant::now();
        let opened = tokio::select! {
            biased;
            opened = tokio::time::timeout(LIMITS.header, self.open(&service, options, &slot.memory)) => opened,
            () = slot.closing.cancelled() => return,
        };
        let Ok(Some(opened)) = opened else { return };
        let (log, peer) = (service.clone(), Arc::clone(&opened.peer.name));
        if let Err(error) = opened.drive(service, accepted, slot).await {
            log.log_connection_error(error.as_ref(), &peer);
        }
    }

    /// Waits for the first bytes of HTTP, inside TLS if it is on; `None` if the connection ends before.
    async fn open(
        self,
        service: &Service,
        options: ConnectionOptions,
        memory: &Arc<ClientMemory>,
    ) -> Option<Opened> {
        let first = self.socket.first_bytes().await.ok()?;
        let (mut peer, stream) = (self.peer, self.socket.stream());
        if let Some(mismatch) = first.mismatch(options.tls.is_some()) {
            service.log_mismatch(mismatch, &peer.name);
            if service.answers(mismatch) {
                Box::pin(mismatch.refuse(stream)).await;
            }
            return None;
        }
        let http2 = first == ConnectionKind::MayBeHttp2;
        let (stream, http2) = match options.tls {
            Some(tls) => {
                peer.sendfile = None;
                let accepted = tls::accept(stream, tls, HeaderMeter::handshake(Arc::clone(memory)));
                match Box::pin(accepted).await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        service.log_handshake_error(&error, &peer.name);
                        return None;
                    }
                }
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
        let (peer, memory, closing) = (self.peer, Arc::clone(&slot.memory), slot.closing.clone());
        let progress = Arc::clone(&slot.progress);
        let stream = TrackedIo {
            stream: self.stream,
            progress: Arc::clone(&progress),
            meter: HeaderMeter::http(Arc::clone(&memory), self.http2),
        };
        let timeouts = ConnectionTimeouts::new(Arc::clone(&progress), Arc::clone(&memory), LIMITS, accepted);
        let answer = service_fn(move |request: http::Request<Incoming>| {
            let (service, peer, (parts, body)) = (service.clone(), peer.clone(), request.into_parts());
            let request =
                admit(&parts, &memory).map(|place| progress.begin_request(parts.version).holding(place));
            if request.is_err() {
                progress.overload();
                closing.cancel();
            }
            async move {
                let mut request = request?;
                unread_body::discard(body, &parts, &mut request);
                // Boxed once it runs: an idle connection, and each request that waits for its first poll, keeps space for
                // this future too.
                let response = Box::pin(service.answer(parts, &peer)).await;
                request.on_response();
                Ok::<_, h2::Error>(response.map(|body| TrackedBody { body, request }))
            }
        });
        let connection = builder(self.http2)
            .serve_connection(TokioIo::new(stream), answer)
            .into_owned();
        drive_to_end(Box::pin(connection), timeouts, slot.closing.clone())
    }
}

/// Returns the place of an HTTP/2 request. The error resets its stream, after which the client may send the request again
/// (RFC 9113, 8.7).
fn admit(parts: &http::request::Parts, memory: &ClientMemory) -> Result<Option<Permit>, h2::Error> {
    if parts.version != http::Version::HTTP_2 {
        return Ok(None);
    }
    let fields: usize = parts
        .headers
        .iter()
        .map(|(name, value)| HEADER_FIELD + name.as_str().len() + value.len())
        .sum();
    let place = memory.try_stream(fields + parts.uri.path().len());
    place.map(Some).ok_or(h2::Reason::REFUSED_STREAM.into())
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
                let is_evicted = timeouts.is_evicted() && !timeouts.is_processing();
                if is_evicted || timeouts.is_overloaded() {
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::client_memory::Memory;
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
            short_of_memory: hour,
        };
        let memory = Arc::new(Memory::default().client());
        let timeouts =
            ConnectionTimeouts::new(Arc::clone(&progress), Arc::clone(&memory), limits, Instant::now());
        let meter = HeaderMeter::http(memory, false);
        let answer = service_fn(async |_| Ok::<_, Infallible>(http::Response::new(Full::<Bytes>::default())));
        let connection = builder(false)
            .serve_connection(
                TokioIo::new(TrackedIo {
                    stream,
                    progress,
                    meter,
                }),
                answer,
            )
            .into_owned();
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let ended = drive_to_end(Box::pin(connection), timeouts, shutdown);
        let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
        assert!(ended.is_ok(), "it waits");
    }

    /// A connection that gets a request after it was chosen to make room ends once the request is answered.
    #[tokio::test]
    async fn evicted_connection_answers_its_request() {
        let (mut client, stream) = tokio::io::duplex(1024);
        let progress = Arc::<ConnectionProgress>::default();
        let memory = Arc::new(Memory::default().client());
        let timeouts =
            ConnectionTimeouts::new(Arc::clone(&progress), Arc::clone(&memory), LIMITS, Instant::now());
        let (meter, closing) = (HeaderMeter::http(memory, false), CancellationToken::new());
        let (tracked, evict) = (Arc::clone(&progress), closing.clone());
        let answer = service_fn(move |_| {
            let request = tracked.begin_request(http::Version::HTTP_11);
            tracked.evict();
            evict.cancel();
            async move {
                tokio::time::sleep(EVICTION_GRACE * 5 / 4).await;
                drop(request);
                Ok::<_, Infallible>(http::Response::new(Full::<Bytes>::from("answered")))
            }
        });
        let io = TrackedIo {
            stream,
            progress,
            meter,
        };
        let connection = builder(false)
            .serve_connection(TokioIo::new(io), answer)
            .into_owned();
        let ended = tokio::spawn(drive_to_end(Box::pin(connection), timeouts, closing));
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.ends_with("answered"), "{response}");
        assert!(ended.await.unwrap().is_ok());
    }

    /// A request of HTTP/2 beyond the places of its address is refused so that the client may repeat it.
    #[test]
    fn stream_without_a_place_is_refused() {
        let memory = Memory::default().client();
        let parts = |version| {
            http::Request::builder()
                .version(version)
                .body(())
                .unwrap()
                .into_parts()
                .0
        };
        let held: Vec<_> =
            std::iter::from_fn(|| admit(&parts(http::Version::HTTP_2), &memory).ok()).collect();
        assert!(held.iter().all(Option::is_some));
        let refused = admit(&parts(http::Version::HTTP_2), &memory).unwrap_err();
        assert_eq!(refused.reason(), Some(h2::Reason::REFUSED_STREAM));
        assert!(matches!(admit(&parts(http::Version::HTTP_11), &memory), Ok(None)));
    }
}
