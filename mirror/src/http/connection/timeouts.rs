//! Time limits of a client: for a header, between requests, and for taking more of a response.
//!
//! hyper has one timeout for the first two, and starts it while the end of the previous response is still in flight. So
//! these limits are enforced here, from the progress of the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::client_memory::ClientMemory;
use super::tracked_io::{ConnectionProgress, ConnectionState};

/// The time limits of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    /// For sending a header; for the first one including the client's part of a TLS handshake.
    pub(super) header: Duration,
    /// Between a response and the next request.
    pub(super) idle: Duration,
    /// For taking more of a response.
    pub(super) progress: Duration,
    /// For taking more of a response while others wait for the memory that the client's address holds.
    pub(super) short_of_memory: Duration,
}

/// Clients close idle connections themselves after 90 s (Go, and so containerd) or less: a client that closes first
/// never sends a request on a connection that the server is closing. Unpacking a layer can stall a pull for minutes.
pub(super) const LIMITS: ConnectionLimits = ConnectionLimits {
    header: Duration::from_secs(10),
    idle: Duration::from_mins(2),
    progress: Duration::from_mins(5),
    short_of_memory: Duration::from_secs(30),
};

/// The timeouts of one connection.
///
/// Poll it after the connection, from the same task: it reads the progress counters and registers no waker for them. (It
/// notices the end of an HTTP/2 request that it missed at the next ping.)
pub(super) struct ConnectionTimeouts {
    progress: Arc<ConnectionProgress>,
    memory: Arc<ClientMemory>,
    limits: ConnectionLimits,
    seen: (ConnectionState, u32),
    since: Instant,
    /// Never later than the deadline, and earlier if that saves a reset for each request.
    timer: Pin<Box<Sleep>>,
}

impl ConnectionTimeouts {
    /// Creates the timeouts for a client that connected at `since`.
    pub(super) fn new(
        progress: Arc<ConnectionProgress>,
        memory: Arc<ClientMemory>,
        limits: ConnectionLimits,
        since: Instant,
    ) -> Self {
        Self {
            progress,
            memory,
            limits,
            seen: (ConnectionState::ReadingRequest, 0),
            since,
            timer: Box::pin(tokio::time::sleep_until(since + limits.header)),
        }
    }

    /// Returns `true` while the client has not sent a complete header.
    pub(super) fn is_reading_request(&self) -> bool {
        self.progress.state() == ConnectionState::ReadingRequest
    }

    /// Returns `true` while the server prepares a response.
    pub(super) fn is_processing(&self) -> bool {
        self.progress.state() == ConnectionState::Processing
    }

    /// Returns `true` if the connection has to make room for another one.
    pub(super) fn is_evicted(&self) -> bool {
        self.progress.is_evicted()
    }

    /// Returns `true` if the client has more requests than places.
    pub(super) fn is_overloaded(&self) -> bool {
        self.progress.is_overloaded()
    }

    /// Waits until the client exceeds a limit, and returns the state in which it did.
    pub(super) async fn expired(&mut self) -> ConnectionState {
        std::future::poll_fn(|cx| self.poll_expired(cx)).await
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionState> {
        let state = self.progress.state();
        let seen = (state, self.progress.steps());
        if seen != self.seen {
            (self.seen, self.since) = (seen, Instant::now());
        }
        loop {
            let (deadline, check) = match state {
                ConnectionState::Processing => return Poll::Pending,
                ConnectionState::ReadingRequest => (self.since + self.limits.header, None),
                ConnectionState::Idle => (self.since + self.limits.idle, None),
                ConnectionState::WritingResponse if self.memory.is_short() => {
                    (self.since + self.limits.short_of_memory, None)
                }
                // The memory may become short later.
                ConnectionState::WritingResponse => (
                    self.since + self.limits.progress,
                    Some(Instant::now() + self.limits.short_of_memory),
                ),
            };
            let wake = check.map_or(deadline, |check| check.min(deadline));
            if self.timer.deadline() > wake {
                self.timer.as_mut().reset(wake);
            }
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                self.since = Instant::now();
                return Poll::Ready(state);
            }
            self.timer.as_mut().reset(wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use http::Version;

    use super::super::client_memory::Memory;
    use super::super::header_meter::HeaderMeter;
    use super::super::tracked_io::{TrackedIo, TrackedRequest};
    use super::*;

    const SHORT: Duration = Duration::from_millis(40);
    const LONG: Duration = Duration::from_hours(1);
    /// Long enough for a short timeout to expire.
    const A_WHILE: Duration = Duration::from_millis(200);

    struct Client {
        says: DuplexStream,
        server: TrackedIo<DuplexStream>,
        timeouts: ConnectionTimeouts,
        memory: Arc<ClientMemory>,
    }

    fn client(header: Duration, idle: Duration) -> Client {
        client_of(ConnectionLimits {
            header,
            idle,
            progress: LONG,
            short_of_memory: LONG,
        })
    }

    fn client_of(limits: ConnectionLimits) -> Client {
        let (says, stream) = tokio::io::duplex(64);
        let progress = Arc::<ConnectionProgress>::default();
        let memory = Arc::new(Memory::default().client());
        Client {
            says,
            server: TrackedIo {
                stream,
                progress: Arc::clone(&progress),
                meter: HeaderMeter::http(Arc::clone(&memory), false),
            },
            timeouts: ConnectionTimeouts::new(progress, Arc::clone(&memory), limits, Instant::now()),
            memory,
        }
    }

    impl Client {
        async fn says(&mut self, bytes: &str) {
            self.says.write_all(bytes.as_bytes()).await.unwrap();
            self.server.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
        }

        /// Sends a request that the server answers.
        async fn asks(&mut self) {
            self.says("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            drop(self.request(Version::HTTP_11));
        }

        fn request(&self, version: Version) -> TrackedRequest {
            self.server.progress.begin_request(version)
        }

        /// Returns the state in which the client exceeds a limit, after [`SHORT`] at the earliest.
        async fn late(&mut self) -> ConnectionState {
            let start = Instant::now();
            let late = tokio::time::timeout(LONG, self.timeouts.expired()).await.unwrap();
            assert!(start.elapsed() >= SHORT, "{late:?} after {:?}", start.elapsed());
            late
        }

        async fn is_waited_for(&mut self) -> bool {
            tokio::time::timeout(A_WHILE, self.timeouts.expired())
                .await
                .is_err()
        }
    }

    #[tokio::test]
    async fn unfinished_header_times_out() {
        assert_eq!(client(SHORT, LONG).late().await, ConnectionState::ReadingRequest);
        let mut other = client(A_WHILE, LONG);
        other.says("GET / HTTP/1.1\r\n").await;
        assert_eq!(other.late().await, ConnectionState::ReadingRequest);
    }

    #[tokio::test]
    async fn idle_client_has_longer_than_begun_header() {
        let mut client = client(SHORT, LONG);
        client.asks().await;
        assert!(client.is_waited_for().await);
        client.says("GET / HTTP/1.1\r\n\r").await;
        assert_eq!(client.late().await, ConnectionState::ReadingRequest);
        client.says("\n").await;
        drop(client.request(Version::HTTP_11));
        assert!(client.is_waited_for().await);
    }

    #[tokio::test]
    async fn request_resets_idle_timeout() {
        let mut client = client(LONG, SHORT);
        for _ in 0..5 {
            client.asks().await;
            let _ = tokio::time::timeout(SHORT / 2, client.timeouts.expired()).await;
        }
        client.asks().await;
        assert_eq!(client.late().await, ConnectionState::Idle);
    }

    #[tokio::test]
    async fn no_timeout_while_response_is_written() {
        let mut client = client(SHORT, SHORT);
        client.says("GET / HTTP/1.1\r\n\r\n").await;
        let request = client.request(Version::HTTP_11);
        assert!(client.is_waited_for().await);
        // The server is done with it, but the client takes it slowly.
        let wrote = tokio::time::timeout(SHORT, client.server.write_all(&[0; 100])).await;
        assert!(wrote.is_err(), "there is room for 64");
        drop(request);
        assert!(client.is_waited_for().await);
        client.says.read_exact(&mut [0; 64]).await.unwrap();
        client.server.write_all(&[0; 36]).await.unwrap();
        assert_eq!(client.late().await, ConnectionState::Idle);
    }

    #[tokio::test]
    async fn stalled_reader_times_out_progress_resets_timeout() {
        let mut client = client_of(ConnectionLimits {
            header: LONG,
            idle: LONG,
            progress: A_WHILE,
            short_of_memory: A_WHILE,
        });
        client.says("GET / HTTP/1.1\r\n\r\n").await;
        let _request = client.request(Version::HTTP_11);
        for _ in 0..5 {
            let wrote = tokio::time::timeout(SHORT / 4, client.server.write_all(&[0; 100])).await;
            assert!(wrote.is_err(), "there is room for 64");
            let late = tokio::time::timeout(SHORT / 4, client.timeouts.expired()).await;
            assert!(late.is_err(), "late at once");
            client.says.read_exact(&mut [0; 64]).await.unwrap();
        }
        let wrote = tokio::time::timeout(SHORT / 4, client.server.write_all(&[0; 100])).await;
        assert!(wrote.is_err(), "there is room for 64");
        assert_eq!(client.late().await, ConnectionState::WritingResponse);
    }

    #[tokio::test]
    async fn closed_http2_window_times_out_despite_pings() {
        let mut client = client_of(ConnectionLimits {
            header: LONG,
            idle: LONG,
            progress: A_WHILE,
            short_of_memory: A_WHILE,
        });
        client.says("frames").await;
        let mut request = client.request(Version::HTTP_2);
        assert!(client.is_waited_for().await, "there is no answer yet");
        request.on_response();
        let mut late = None;
        for _ in 0..100 {
            client.server.write_all(&[0; 17]).await.unwrap();
            client.says.read_exact(&mut [0; 17]).await.unwrap();
            late = tokio::time::timeout(SHORT, client.timeouts.expired()).await.ok();
            if late.is_some() {
                break;
            }
        }
        assert_eq!(late, Some(ConnectionState::WritingResponse));
        request.on_wait();
        assert!(client.is_waited_for().await, "it waits for the server again");
    }

    /// A client that takes nothing has less time while others of its address wait for the memory that it holds; a
    /// response that waits for memory is not one that waits for the server.
    #[tokio::test]
    async fn stalled_reader_has_less_time_while_memory_is_short() {
        let mut client = client_of(ConnectionLimits {
            header: LONG,
            idle: LONG,
            progress: LONG,
            short_of_memory: SHORT,
        });
        client.says("frames").await;
        let mut request = client.request(Version::HTTP_2);
        request.on_response();
        assert!(client.is_waited_for().await, "there is memory");
        let take_all = |memory: &Arc<ClientMemory>| {
            let memory = Arc::clone(memory);
            std::iter::from_fn(move || memory.try_block(u64::MAX)).collect::<Vec<_>>()
        };
        let held = take_all(&client.memory);
        let late = tokio::time::timeout(LONG, client.timeouts.expired()).await;
        assert_eq!(late.unwrap(), ConnectionState::WritingResponse);
        drop(held);
        let _other = client.request(Version::HTTP_2);
        assert!(client.is_waited_for().await, "the server owes a response");
        let progress = Arc::clone(&client.server.progress);
        let (_waiting, _held) = (progress.wait_for_memory(), take_all(&client.memory));
        assert_eq!(client.late().await, ConnectionState::WritingResponse);
    }

    #[tokio::test]
    async fn flush_does_not_reset_header_timeout() {
        let (mut client, mut late) = (client(A_WHILE, LONG), None);
        for _ in 0..100 {
            client.server.flush().await.unwrap();
            late = tokio::time::timeout(SHORT, client.timeouts.expired()).await.ok();
            if late.is_some() {
                break;
            }
        }
        assert_eq!(late, Some(ConnectionState::ReadingRequest));
    }

    #[tokio::test]
    async fn concurrent_requests_idle_after_last_one() {
        let mut client = client(SHORT, SHORT);
        client.says("frames").await;
        let (one, other) = (client.request(Version::HTTP_2), client.request(Version::HTTP_2));
        drop(one);
        assert!(client.is_waited_for().await);
        drop(other);
        assert_eq!(client.late().await, ConnectionState::Idle);
    }
}
