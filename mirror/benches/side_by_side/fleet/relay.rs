//! A relay in front of the object store: it counts the requests, and fails on demand.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::listener::Listener;

/// A store without requests for this long has no work left.
const QUIET: Duration = Duration::from_millis(1_500);
/// The longest wait for that.
const LIMIT: Duration = Duration::from_mins(1);
/// A part of an answer that is longer, in bytes, is content.
const CONTENT: usize = 4 << 10;
const UNAVAILABLE: &str = "<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";

/// A fault of the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The port is closed.
    Gone,
    /// Each request waits for this long.
    Slow(Duration),
    /// Each request gets 503.
    Unavailable,
    /// Content of some KiB comes with a wrong byte.
    Wrong,
}

/// The requests to the store, by kind.
#[derive(Clone, Copy, Default)]
pub(crate) struct Requests {
    pub(crate) gets: u32,
    pub(crate) heads: u32,
    /// GETs of a list of objects or uploads.
    pub(crate) lists: u32,
    /// Writes whose source is an object of the store.
    pub(crate) copies: u32,
    /// PUT, POST and DELETE without a source.
    pub(crate) writes: u32,
}

/// A relay that runs as long as the process.
pub(crate) struct Relay(Arc<Shared>);

struct Shared {
    listener: Arc<Listener>,
    store: SocketAddr,
    fault: Mutex<Option<Fault>>,
    requests: Mutex<Requests>,
}

impl Requests {
    pub(crate) fn total(&self) -> u32 {
        self.gets + self.heads + self.lists + self.copies + self.writes
    }

    fn add(&mut self, head: &Head) {
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let is_bucket = path.trim_matches('/').split('/').count() == 1;
        let count = match &*head.method {
            "GET" if is_bucket || query.contains("list-type=") => &mut self.lists,
            "GET" => &mut self.gets,
            "HEAD" => &mut self.heads,
            _ if head.is_copy => &mut self.copies,
            _ => &mut self.writes,
        };
        *count += 1;
    }
}

impl Relay {
    pub(crate) fn start(store: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            listener: Listener::new(),
            store,
            fault: Mutex::default(),
            requests: Mutex::default(),
        });
        let serving = shared.clone();
        // A connection that ends is a client or a store that closed it.
        shared.listener.serve(move |client| drop(serving.serve(&client)));
        Self(shared)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.listener.address()
    }

    /// Fails in this way until the next call; `None` ends it.
    pub(crate) fn fail(&self, fault: Option<Fault>) {
        *self.0.fault.lock() = fault;
        self.0.listener.set_open(fault != Some(Fault::Gone));
    }

    /// Waits until the store has no work, and returns the requests since the last call.
    pub(crate) fn take_settled(&self) -> Requests {
        let started = Instant::now();
        let mut last = (self.0.requests.lock().total(), Instant::now());
        while last.1.elapsed() < QUIET && started.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(20));
            let total = self.0.requests.lock().total();
            if total != last.0 {
                last = (total, Instant::now());
            }
        }
        std::mem::take(&mut *self.0.requests.lock())
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, client: &TcpStream) -> io::Result<()> {
        let store = TcpStream::connect(self.store)?;
        client.set_nodelay(true)?;
        store.set_nodelay(true)?;
        let (answers, back, shared) = (store.try_clone()?, client.try_clone()?, self.clone());
        std::thread::spawn(move || {
            let copied = shared.answers(&answers, &back);
            let closed = back.shutdown(Shutdown::Both);
            copied.and(closed)
        });
        let relayed = self.requests(client, &store);
        store.shutdown(Shutdown::Both)?;
        relayed
    }

    /// Passes answers on until the store has no more.
    fn answers(&self, mut store: &TcpStream, mut client: &TcpStream) -> io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let length = store.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            // Heads and links are shorter.
            if length > CONTENT && *self.fault.lock() == Some(Fault::Wrong) {
                buffer[length - 1] ^= 1;
            }
            client.write_all(&buffer[..length])?;
        }
    }

    /// Passes requests on until the client has no more.
    fn requests(&self, client: &TcpStream, mut store: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(64 << 10, client);
        while let Some(head) = Head::read(&mut reader)? {
            let fault = *self.fault.lock();
            if fault == Some(Fault::Gone) {
                break;
            }
            self.requests.lock().add(&head);
            match fault {
                Some(Fault::Unavailable) => return refuse(client),
                Some(Fault::Slow(time)) => std::thread::sleep(time),
                Some(Fault::Gone | Fault::Wrong) | None => {}
            }
            store.write_all(head.text.as_bytes())?;
            let mut body = reader.by_ref().take(head.length);
            io::copy(&mut body, &mut store)?;
        }
        Ok(())
    }
}

/// Answers 503, and closes the connection once the client did.
fn refuse(mut client: &TcpStream) -> io::Result<()> {
    write!(
        client,
        "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{UNAVAILABLE}",
        UNAVAILABLE.len()
    )?;
    client.shutdown(Shutdown::Write)?;
    io::copy(&mut client, &mut io::sink()).map(drop)
}

/// The head of a request.
struct Head {
    text: String,
    method: String,
    target: String,
    length: u64,
    is_copy: bool,
}

impl Head {
    /// Reads the next head; `None` at the end of the connection.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut text = String::new();
        if reader.read_line(&mut text)? == 0 {
            return Ok(None);
        }
        let mut words = text.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (mut length, mut is_copy) = (0, false);
        loop {
            let start = text.len();
            reader.read_line(&mut text)?;
            let line = text[start..].trim_end().to_ascii_lowercase();
            match line.split_once(": ") {
                None => break,
                Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
                Some(("transfer-encoding", _)) => return Err(io::Error::other("a chunked request")),
                Some(("x-amz-copy-source", _)) => is_copy = true,
                Some(_) => {}
            }
        }
        Ok(Some(Self {
            text,
            method,
            target,
            length,
            is_copy,
        }))
    }
}
