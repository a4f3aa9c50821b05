//! How long a client may take: for a header, between requests, and for more of an answer.
//!
//! hyper has one time-out for the first two, and begins it while the end of the answer before is still on its way. So it
//! is looked at here where a connection stands, by what goes through it.

mod watched;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Version;
use tokio::time::{Instant, Sleep};

pub(super) use watched::{Answering, Watched};

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// To send a header, with their part of a TLS handshake before the first one.
    pub(super) header: Duration,
    /// Between an answer and the next request.
    pub(super) idle: Duration,
    /// To take more of an answer.
    pub(super) take: Duration,
}

/// Clients end idle connections of their own accord after 90 s (Go's, and so containerd's) or less: who ends one first
/// does not ask on one that is being closed. Unpacking a layer can stall a pull for minutes.
pub(super) const LIMITS: Limits = Limits {
    header: Duration::from_secs(10),
    idle: Duration::from_mins(2),
    take: Duration::from_mins(5),
};
/// What ends a header (RFC 9112, section 2.1).
const END: u32 = u32::from_be_bytes(*b"\r\n\r\n");

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client has to say what it wants.
    Asking,
    /// It is for the server.
    Answering,
    /// The client has to take what there is for it.
    Taking,
    /// All was answered.
    Idle,
}

/// What a connection's parts say of it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    asked: AtomicU32,
    under_way: AtomicU32,
    /// How many of those under way wait for the server: for an answer, or for more of it.
    owed: AtomicU32,
    /// The last four bytes from the client.
    tail: AtomicU32,
    /// Whether it speaks HTTP/2, whose headers do not end in [`END`]: who leaves one unfinished there can't answer
    /// pings, and is cut for that.
    framed: AtomicBool,
    /// Whether bytes wait for the client to take them.
    blocked: AtomicBool,
    /// How often some were taken.
    taken: AtomicU32,
}

impl Progress {
    /// There is a request; it is over when what is returned is dropped.
    pub(super) fn request(self: &Arc<Self>, version: Version) -> UnderWay {
        self.framed.store(version == Version::HTTP_2, Ordering::Relaxed);
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.owed.fetch_add(1, Ordering::Relaxed);
        UnderWay {
            progress: Arc::clone(self),
            owed: true,
        }
    }

    fn phase(&self) -> Phase {
        let framed = self.framed.load(Ordering::Relaxed);
        let between = || framed || self.tail.load(Ordering::Relaxed) == END;
        if self.blocked.load(Ordering::Relaxed) {
            Phase::Taking
        } else if self.under_way.load(Ordering::Relaxed) > 0 {
            // Over HTTP/2 the stream may take bytes, and the client have no window open for those of an answer.
            if framed && self.owed.load(Ordering::Relaxed) == 0 {
                Phase::Taking
            } else {
                Phase::Answering
            }
        } else if self.asked.load(Ordering::Relaxed) > 0 && between() {
            Phase::Idle
        } else {
            Phase::Asking
        }
    }

    /// Where it stands, and how often it moved on.
    fn stand(&self) -> (Phase, u32) {
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        (self.phase(), count(&self.asked).wrapping_add(count(&self.taken)))
    }

    fn heard(&self, bytes: &[u8]) {
        let last = &bytes[bytes.len().saturating_sub(4)..];
        let tail = last.iter().fold(self.tail.load(Ordering::Relaxed), |tail, byte| {
            tail << 8 | u32::from(*byte)
        });
        self.tail.store(tail, Ordering::Relaxed);
    }
}

/// A request that is not over.
#[derive(Debug)]
pub(super) struct UnderWay {
    progress: Arc<Progress>,
    /// Whether it waits for the server.
    owed: bool,
}

impl UnderWay {
    /// There is something for the client to take.
    pub(super) fn is_served(&mut self) {
        if std::mem::take(&mut self.owed) {
            self.progress.owed.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The client took all that there was.
    fn waits(&mut self) {
        if !std::mem::replace(&mut self.owed, true) {
            self.progress.owed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.is_served();
        self.progress.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits for a client to be late. To be polled by the task that drives its connection, after that: it sees what went on
/// then, and takes no wake-ups of its own for it. (The end of an HTTP/2 request that it does not see so it sees at the
/// next ping.)
pub(super) struct Patience {
    progress: Arc<Progress>,
    limits: Limits,
    seen: (Phase, u32),
    since: Instant,
    /// Never later than it has to be, but earlier where that saves setting it for each request.
    timer: Pin<Box<Sleep>>,
}

impl Patience {
    /// With a client that connected at `since`.
    pub(super) fn new(progress: Arc<Progress>, limits: Limits, since: Instant) -> Self {
        Self {
            progress,
            limits,
            seen: (Phase::Asking, 0),
            since,
            timer: Box::pin(tokio::time::sleep_until(since + limits.header)),
        }
    }

    /// Whether the client has begun to ask, or has yet to.
    pub(super) fn is_with_the_client(&self) -> bool {
        self.progress.phase() == Phase::Asking
    }

    /// What the client is late with.
    pub(super) async fn over(&mut self) -> Phase {
        std::future::poll_fn(|cx| self.poll_over(cx)).await
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Phase> {
        let stands = self.progress.stand();
        let phase = stands.0;
        if stands != self.seen {
            (self.seen, self.since) = (stands, Instant::now());
        }
        let deadline = match phase {
            Phase::Answering => return Poll::Pending,
            Phase::Asking => self.since + self.limits.header,
            Phase::Idle => self.since + self.limits.idle,
            Phase::Taking => self.since + self.limits.take,
        };
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                self.since = Instant::now();
                return Poll::Ready(phase);
            }
            self.timer.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const SHORT: Duration = Duration::from_millis(40);
    const LONG: Duration = Duration::from_hours(1);
    /// Long enough for what is over after a short time to be over.
    const A_WHILE: Duration = Duration::from_millis(200);

    struct Client {
        says: DuplexStream,
        server: Watched<DuplexStream>,
        patience: Patience,
    }

    fn client(header: Duration, idle: Duration) -> Client {
        client_of(Limits {
            header,
            idle,
            take: LONG,
        })
    }

    fn client_of(limits: Limits) -> Client {
        let (says, stream) = tokio::io::duplex(64);
        let progress = Arc::<Progress>::default();
        Client {
            says,
            server: Watched {
                stream,
                progress: Arc::clone(&progress),
            },
            patience: Patience::new(progress, limits, Instant::now()),
        }
    }

    impl Client {
        async fn says(&mut self, bytes: &str) {
            self.says.write_all(bytes.as_bytes()).await.unwrap();
            self.server.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
        }

        /// Has been answered.
        async fn asks(&mut self) {
            self.says("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            drop(self.request(Version::HTTP_11));
        }

        fn request(&self, version: Version) -> UnderWay {
            self.server.progress.request(version)
        }

        /// What it is late with, at the earliest after a short time.
        async fn late(&mut self) -> Phase {
            let start = Instant::now();
            let late = tokio::time::timeout(LONG, self.patience.over()).await.unwrap();
            assert!(start.elapsed() >= SHORT, "{late:?} after {:?}", start.elapsed());
            late
        }

        async fn is_waited_for(&mut self) -> bool {
            tokio::time::timeout(A_WHILE, self.patience.over()).await.is_err()
        }
    }

    #[tokio::test]
    async fn who_asks_nothing_or_a_part_is_late_after_a_headers_time() {
        assert_eq!(client(SHORT, LONG).late().await, Phase::Asking);
        let mut other = client(A_WHILE, LONG);
        other.says("GET / HTTP/1.1\r\n").await;
        assert_eq!(other.late().await, Phase::Asking);
    }

    #[tokio::test]
    async fn who_was_answered_has_longer_but_not_for_the_next_header() {
        let mut client = client(SHORT, LONG);
        client.asks().await;
        assert!(client.is_waited_for().await);
        client.says("GET / HTTP/1.1\r\n\r").await;
        assert_eq!(client.late().await, Phase::Asking);
        client.says("\n").await;
        drop(client.request(Version::HTTP_11));
        assert!(client.is_waited_for().await);
    }

    #[tokio::test]
    async fn each_request_begins_the_time_anew() {
        let mut client = client(LONG, SHORT);
        for _ in 0..5 {
            client.asks().await;
            let _ = tokio::time::timeout(SHORT / 2, client.patience.over()).await;
        }
        client.asks().await;
        assert_eq!(client.late().await, Phase::Idle);
    }

    #[tokio::test]
    async fn nobody_is_late_while_an_answer_is_on_its_way() {
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
        assert_eq!(client.late().await, Phase::Idle);
    }

    #[tokio::test]
    async fn who_takes_nothing_of_an_answer_is_late_and_who_takes_some_has_longer() {
        let mut client = client_of(Limits {
            header: LONG,
            idle: LONG,
            take: A_WHILE,
        });
        client.says("GET / HTTP/1.1\r\n\r\n").await;
        let _request = client.request(Version::HTTP_11);
        for _ in 0..5 {
            let wrote = tokio::time::timeout(SHORT / 4, client.server.write_all(&[0; 100])).await;
            assert!(wrote.is_err(), "there is room for 64");
            let late = tokio::time::timeout(SHORT / 4, client.patience.over()).await;
            assert!(late.is_err(), "late at once");
            client.says.read_exact(&mut [0; 64]).await.unwrap();
        }
        let wrote = tokio::time::timeout(SHORT / 4, client.server.write_all(&[0; 100])).await;
        assert!(wrote.is_err(), "there is room for 64");
        assert_eq!(client.late().await, Phase::Taking);
    }

    #[tokio::test]
    async fn who_opens_no_window_for_an_answer_is_late_though_pings_pass() {
        let mut client = client_of(Limits {
            header: LONG,
            idle: LONG,
            take: A_WHILE,
        });
        client.says("frames").await;
        let mut request = client.request(Version::HTTP_2);
        assert!(client.is_waited_for().await, "there is no answer yet");
        request.is_served();
        let mut late = None;
        for _ in 0..100 {
            client.server.write_all(&[0; 17]).await.unwrap();
            client.says.read_exact(&mut [0; 17]).await.unwrap();
            late = tokio::time::timeout(SHORT, client.patience.over()).await.ok();
            if late.is_some() {
                break;
            }
        }
        assert_eq!(late, Some(Phase::Taking));
        request.waits();
        assert!(client.is_waited_for().await, "it waits for the server again");
    }

    #[tokio::test]
    async fn who_says_nothing_gains_no_time_by_what_the_server_flushes() {
        let (mut client, mut late) = (client(A_WHILE, LONG), None);
        for _ in 0..100 {
            client.server.flush().await.unwrap();
            late = tokio::time::timeout(SHORT, client.patience.over()).await.ok();
            if late.is_some() {
                break;
            }
        }
        assert_eq!(late, Some(Phase::Asking));
    }

    #[tokio::test]
    async fn requests_side_by_side_are_idle_once_all_are_over() {
        let mut client = client(SHORT, SHORT);
        client.says("frames").await;
        let (one, other) = (client.request(Version::HTTP_2), client.request(Version::HTTP_2));
        drop(one);
        assert!(client.is_waited_for().await);
        drop(other);
        assert_eq!(client.late().await, Phase::Idle);
    }
}
