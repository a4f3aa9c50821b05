//! The registry that all pull through: wants a token, answers late, over one link of limited width, counts, and
//! misbehaves on request.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::client::Target;
use crate::content::{Content, Item, Named};

/// From a request to the first byte of its answer.
const LATENCY: Duration = Duration::from_millis(50);
/// Bytes a second, of all connections together, unless it is said otherwise.
pub(crate) const BANDWIDTH: u32 = 200 << 20;
/// What clients show once they have it.
pub(crate) const TOKEN: &str = "Bearer open-sesame";
const STEP: usize = 256 << 10;

/// How it behaves.
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

/// What it was asked.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) blob_gets: u64,
    pub(crate) blob_bytes: u64,
    pub(crate) tokens: u64,
}

/// Runs as long as the process.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    bytes: Arc<[u8]>,
    address: SocketAddr,
    items: Mutex<HashMap<String, Item>>,
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes a second, of all connections together.
    width: AtomicU32,
    counts: Mutex<Counts>,
    /// When the link is free again.
    link: Mutex<Instant>,
}

struct State {
    mode: Mode,
    /// `true` if there is a listener.
    listening: bool,
}

impl Upstream {
    pub(crate) fn start(content: &Content) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            bytes: content.bytes.clone(),
            address,
            items: Mutex::new(content.first().into_iter().collect()),
            state: Mutex::new(State {
                mode: Mode::Well,
                listening: true,
            }),
            changed: Condvar::new(),
            width: AtomicU32::new(BANDWIDTH),
            counts: Mutex::default(),
            link: Mutex::new(Instant::now()),
        });
        let serving = shared.clone();
        std::thread::spawn(move || serving.listen(listener));
        Self { address, shared }
    }

    pub(crate) fn target(&self) -> Target {
        Target {
            address: self.address,
            tls: None,
        }
    }

    /// Has these from now on.
    pub(crate) fn add(&self, items: impl IntoIterator<Item = Named>) {
        self.shared.items.lock().extend(items);
    }

    /// Returns once it does.
    pub(crate) fn behave(&self, mode: Mode) {
        self.shared.state.lock().mode = mode;
        self.shared.changed.notify_all();
        // Who waits for clients has to look.
        let _ = TcpStream::connect(self.address);
        self.shared
            .wait_while(|state| state.listening == (mode == Mode::Down));
    }

    /// Its link is this wide from now on, in bytes a second.
    pub(crate) fn widen(&self, width: u32) {
        self.shared.width.store(width, Ordering::Relaxed);
    }

    /// What it was asked since the last call.
    pub(crate) fn take_counts(&self) -> Counts {
        std::mem::take(&mut *self.shared.counts.lock())
    }
}

impl Shared {
    fn listen(self: &Arc<Self>, mut listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept() else {
                continue;
            };
            if self.mode() == Mode::Down {
                drop((stream, listener));
                self.listens(false);
                self.wait_while(|state| state.mode == Mode::Down);
                listener = TcpListener::bind(self.address).unwrap();
                self.listens(true);
            } else {
                let shared = self.clone();
                // A connection that ends is a client that left.
                std::thread::spawn(move || shared.serve(&stream));
            }
        }
    }

    fn listens(&self, listening: bool) {
        self.state.lock().listening = listening;
        self.changed.notify_all();
    }

    fn wait_while(&self, waits: impl Fn(&State) -> bool) {
        self.changed
            .wait_while(&mut self.state.lock(), |state| waits(state));
    }

    fn mode(&self) -> Mode {
        self.state.lock().mode
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut request = String::new();
            if reader.read_line(&mut request)? == 0 || self.mode() == Mode::Down {
                return Ok(());
            }
            let (mut line, mut token) = (String::from("-"), false);
            while !line.trim_end().is_empty() {
                line.clear();
                reader.read_line(&mut line)?;
                token |= line.trim_end().ends_with(TOKEN);
            }
            let mut words = request.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            std::thread::sleep(LATENCY);
            self.answer(stream, method == "HEAD", path, token)?;
        }
    }

    fn answer(&self, mut stream: &TcpStream, head_only: bool, path: &str, token: bool) -> io::Result<()> {
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
            let realm = format!(r#"Bearer realm="http://{}/token",service="bench""#, self.address);
            return write!(
                stream,
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {realm}\r\nContent-Length: 0\r\n\r\n"
            );
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        let item = self.items.lock().get(name).cloned();
        match item {
            _ if path == "/v2/" => self.document(stream, head_only, "application/json", b"{}"),
            Some(Item::Document(bytes, kind)) => self.document(stream, head_only, kind, &bytes),
            Some(Item::Layer { head, length }) => {
                let mut last = [self.bytes[length - 1]];
                last[0] ^= u8::from(mode == Mode::Corrupts);
                self.layer(stream, head_only, [&head, &self.bytes[8..length - 1], &last])
            }
            None => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        }
    }

    fn document(&self, stream: &TcpStream, head_only: bool, kind: &str, bytes: &[u8]) -> io::Result<()> {
        use mirror::digest::{Algorithm, Digest};
        let digest = Digest::compute(Algorithm::Sha256, bytes);
        let kind = format!("{kind}\r\nDocker-Content-Digest: {digest}");
        self.send(stream, head_only, &kind, [bytes, b"", b""])
    }

    fn layer(&self, stream: &TcpStream, head_only: bool, parts: [&[u8]; 3]) -> io::Result<()> {
        if !head_only {
            let mut counts = self.counts.lock();
            counts.blob_gets += 1;
            counts.blob_bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        }
        self.send(stream, head_only, "application/octet-stream", parts)
    }

    fn send(&self, mut stream: &TcpStream, head_only: bool, kind: &str, parts: [&[u8]; 3]) -> io::Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )?;
        let steps = parts.into_iter().flat_map(|part| part.chunks(STEP));
        for step in steps.filter(|_| !head_only) {
            self.take_link(step.len());
            stream.write_all(step)?;
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
