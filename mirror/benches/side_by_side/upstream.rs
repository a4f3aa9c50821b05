//! The registry that all pull through: wants a token, answers late, over one link of limited width, counts, and
//! misbehaves on request.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::client::Target;
use crate::content::{Content, Item, Named};
use crate::listener::Listener;

/// From a request to the first byte of its answer.
const LATENCY: Duration = Duration::from_millis(50);
/// Bytes a second, of all connections together, unless it is said otherwise.
pub(crate) const BANDWIDTH: u32 = 200 << 20;
/// The `Authorization` of clients that have a token.
pub(crate) const TOKEN: &str = "Bearer open-sesame";
const STEP: usize = 256 << 10;

/// The behaviour of the registry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Well,
    /// It takes requests and never answers.
    Hangs,
    /// No listener, and no connection.
    Down,
    /// It answers each with this status.
    Fails(&'static str),
    /// The last byte of each layer is another one.
    Corrupts,
}

/// The requests that the registry received.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) blob_gets: u64,
    pub(crate) blob_heads: u64,
    /// The bytes of blobs that were sent.
    pub(crate) blob_bytes: u64,
    pub(crate) tokens: u64,
    /// GETs and HEADs of a manifest by tag.
    pub(crate) tags: u64,
}

/// Runs as long as the process.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    bytes: Arc<[u8]>,
    listener: Arc<Listener>,
    items: Mutex<HashMap<String, Item>>,
    mode: Mutex<Mode>,
    /// Bytes a second, of all connections together.
    width: AtomicU32,
    counts: Mutex<Counts>,
    /// The time at which the link is free again.
    link: Mutex<Instant>,
}

impl Upstream {
    pub(crate) fn start(content: &Content) -> Self {
        let shared = Arc::new(Shared {
            bytes: content.bytes.clone(),
            listener: Listener::new(),
            items: Mutex::new(content.first().into_iter().collect()),
            mode: Mutex::new(Mode::Well),
            width: AtomicU32::new(BANDWIDTH),
            counts: Mutex::default(),
            link: Mutex::new(Instant::now()),
        });
        let serving = shared.clone();
        // A connection that ends is a client that left.
        shared.listener.serve(move |stream| drop(serving.serve(&stream)));
        let address = shared.listener.address();
        Self { address, shared }
    }

    pub(crate) fn target(&self) -> Target {
        Target::plain(self.address)
    }

    /// Has these from now on.
    pub(crate) fn add(&self, items: impl IntoIterator<Item = Named>) {
        self.shared.items.lock().extend(items);
    }

    /// Returns once it does.
    pub(crate) fn behave(&self, mode: Mode) {
        *self.shared.mode.lock() = mode;
        self.shared.listener.set_open(mode != Mode::Down);
    }

    /// Its link is this wide from now on, in bytes a second.
    pub(crate) fn widen(&self, width: u32) {
        self.shared.width.store(width, Ordering::Relaxed);
    }

    /// Returns the bytes of blobs that were sent since the last call of [`Upstream::take_counts`].
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.shared.counts.lock().blob_bytes
    }

    /// Returns the requests since the last call.
    pub(crate) fn take_counts(&self) -> Counts {
        std::mem::take(&mut *self.shared.counts.lock())
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        *self.mode.lock()
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut request = String::new();
            if reader.read_line(&mut request)? == 0 || self.mode() == Mode::Down {
                return Ok(());
            }
            let (mut line, mut token, mut from) = (String::from("-"), false, 0);
            while !line.trim_end().is_empty() {
                line.clear();
                reader.read_line(&mut line)?;
                token |= line.trim_end().ends_with(TOKEN);
                from = range_start(&line).unwrap_or(from);
            }
            let mut words = request.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            std::thread::sleep(LATENCY);
            let asked = Asked {
                head_only: method == "HEAD",
                path,
                token,
                from,
            };
            self.answer(stream, &asked)?;
        }
    }

    fn answer(&self, mut stream: &TcpStream, asked: &Asked<'_>) -> io::Result<()> {
        let &Asked {
            head_only,
            path,
            token,
            ..
        } = asked;
        let mode = self.mode();
        self.counts.lock().requests += 1;
        match mode {
            Mode::Hangs => {
                // Until the other side has had enough.
                io::copy(&mut stream, &mut io::sink())?;
                return Ok(());
            }
            Mode::Fails(status) => {
                return write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            }
            Mode::Well | Mode::Corrupts | Mode::Down => {}
        }
        if path.starts_with("/token") {
            self.counts.lock().tokens += 1;
            let body = format!(r#"{{"token":"{}","expires_in":3600}}"#, &TOKEN["Bearer ".len()..]);
            return self.document(stream, head_only, "application/json", body.as_bytes());
        }
        if !token {
            let address = self.listener.address();
            let realm = format!(r#"Bearer realm="http://{address}/token",service="bench""#);
            return write!(
                stream,
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {realm}\r\nContent-Length: 0\r\n\r\n"
            );
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        let item = self.items.lock().get(name).cloned();
        match item {
            _ if path == "/v2/" => self.document(stream, head_only, "application/json", b"{}"),
            Some(Item::Document(bytes, kind)) => {
                self.counts.lock().tags += u64::from(path.contains("/manifests/") && !name.contains(':'));
                self.document(stream, head_only, kind, &bytes)
            }
            Some(Item::Layer { head, length }) => {
                let mut last = [self.bytes[length - 1]];
                last[0] ^= u8::from(mode == Mode::Corrupts);
                self.layer(stream, asked, [&head, &self.bytes[8..length - 1], &last])
            }
            None => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        }
    }

    fn document(&self, mut stream: &TcpStream, head_only: bool, kind: &str, bytes: &[u8]) -> io::Result<()> {
        use mirror::digest::{Algorithm, Digest};
        let digest = Digest::compute(Algorithm::Sha256, bytes);
        let kind = format!("{kind}\r\nDocker-Content-Digest: {digest}");
        head(stream, "200 OK", &kind, bytes.len())?;
        if head_only {
            return Ok(());
        }
        self.take_link(bytes.len());
        stream.write_all(bytes)
    }

    fn layer(&self, stream: &TcpStream, asked: &Asked<'_>, parts: [&[u8]; 3]) -> io::Result<()> {
        let (kind, length) = ("application/octet-stream", total(&parts));
        if asked.head_only {
            self.counts.lock().blob_heads += 1;
            return head(stream, "200 OK", kind, length);
        }
        self.counts.lock().blob_gets += 1;
        let parts = skip(parts, asked.from);
        let sent = total(&parts);
        if sent == length {
            head(stream, "200 OK", kind, length)?;
        } else {
            let range = format!(
                "{kind}\r\nContent-Range: bytes {}-{}/{length}",
                asked.from,
                length - 1
            );
            head(stream, "206 Partial Content", &range, sent)?;
        }
        self.send(stream, &parts)
    }

    fn send(&self, mut stream: &TcpStream, parts: &[&[u8]]) -> io::Result<()> {
        for step in parts.iter().flat_map(|part| part.chunks(STEP)) {
            self.take_link(step.len());
            stream.write_all(step)?;
            self.counts.lock().blob_bytes += step.len() as u64;
        }
        Ok(())
    }

    fn take_link(&self, bytes: usize) {
        let takes = Duration::from_secs_f64(bytes as f64 / f64::from(self.width.load(Ordering::Relaxed)));
        let mut free = self.link.lock();
        let begins = (*free).max(Instant::now());
        *free = begins + takes;
        drop(free);
        std::thread::sleep(begins.saturating_duration_since(Instant::now()));
    }
}

/// A request, as far as the answer depends on it.
struct Asked<'a> {
    head_only: bool,
    path: &'a str,
    token: bool,
    /// The first byte of the range.
    from: usize,
}

/// Returns the first byte of a range without an end.
fn range_start(header: &str) -> Option<usize> {
    let (name, value) = header.trim_end().split_once(": bytes=")?;
    let from = value.strip_suffix('-')?.parse().ok()?;
    name.eq_ignore_ascii_case("range").then_some(from)
}

/// Leaves out so many bytes at the beginning.
fn skip(parts: [&[u8]; 3], mut from: usize) -> [&[u8]; 3] {
    parts.map(|part| {
        let skipped = from.min(part.len());
        from -= skipped;
        &part[skipped..]
    })
}

fn total(parts: &[&[u8]]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

fn head(mut stream: &TcpStream, status: &str, kind: &str, length: usize) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    )
}
