//! The registry that all pull through: answers late, over one link of limited width, and counts.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::content::{Content, LAYER};

/// From a request to the first byte of its answer.
pub(crate) const LATENCY: Duration = Duration::from_millis(50);
/// Bytes a second, of all connections together.
pub(crate) const BANDWIDTH: u32 = 200 << 20;
const STEP: usize = 256 << 10;

/// Runs as long as the process.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    content: Content,
    fresh: Mutex<HashMap<String, [u8; 8]>>,
    blob_gets: AtomicU64,
    requests: AtomicU64,
    /// When the link is free again.
    link: Mutex<Instant>,
}

impl Upstream {
    pub(crate) fn start(content: Content) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            content,
            fresh: Mutex::default(),
            blob_gets: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            link: Mutex::new(Instant::now()),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                // A connection that ends is a client that left.
                std::thread::spawn(move || shared.serve(&stream));
            }
        });
        Self { address, shared }
    }

    /// Has this layer from now on.
    pub(crate) fn add(&self, digest: &str, head: [u8; 8]) {
        self.shared.fresh.lock().unwrap().insert(digest.to_owned(), head);
    }

    /// `GET`s of blobs and all requests since the last call.
    pub(crate) fn take_counts(&self) -> (u64, u64) {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        (take(&self.shared.blob_gets), take(&self.shared.requests))
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut request = String::new();
            if reader.read_line(&mut request)? == 0 {
                return Ok(());
            }
            let mut line = String::from("-");
            while !line.trim_end().is_empty() {
                line.clear();
                reader.read_line(&mut line)?;
            }
            let mut words = request.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            std::thread::sleep(LATENCY);
            self.answer(stream, method == "HEAD", path)?;
        }
    }

    fn answer(&self, mut stream: &TcpStream, head_only: bool, path: &str) -> io::Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let name = path.rsplit('/').next().unwrap_or_default();
        let content = &self.content;
        let fresh = self.fresh.lock().unwrap().get(name).copied();
        let (start, rest): (&[u8], &[u8]) = match (path, fresh) {
            ("/v2/", _) => (b"{}", b""),
            (_, Some(ref head)) => return self.blob(stream, head_only, name, head, &content.layer[8..]),
            _ if path.contains("/manifests/") => (&content.manifest, b""),
            _ if name == content.small_digest.as_str() => {
                return self.blob(stream, head_only, name, &content.small, b"");
            }
            _ if name == content.layer_digest.as_str() => {
                return self.blob(stream, head_only, name, &content.layer, b"");
            }
            _ => return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        };
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.send(
            stream,
            head_only,
            kind,
            content.manifest_digest.as_str(),
            [start, rest],
        )
    }

    fn blob(
        &self,
        stream: &TcpStream,
        head_only: bool,
        digest: &str,
        start: &[u8],
        rest: &[u8],
    ) -> io::Result<()> {
        self.blob_gets.fetch_add(u64::from(!head_only), Ordering::Relaxed);
        self.send(
            stream,
            head_only,
            "application/octet-stream",
            digest,
            [start, rest],
        )
    }

    fn send(
        &self,
        mut stream: &TcpStream,
        head_only: bool,
        kind: &str,
        digest: &str,
        parts: [&[u8]; 2],
    ) -> io::Result<()> {
        let length = parts[0].len() + parts[1].len();
        debug_assert!(length <= LAYER);
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\nContent-Length: {length}\r\n\r\n"
        )?;
        for step in parts
            .into_iter()
            .flat_map(|part| part.chunks(STEP))
            .filter(|_| !head_only)
        {
            self.take_link(step.len());
            stream.write_all(step)?;
        }
        Ok(())
    }

    fn take_link(&self, bytes: usize) {
        let takes = Duration::from_secs_f64(bytes as f64 / f64::from(BANDWIDTH));
        let mut free = self.link.lock().unwrap();
        let begins = (*free).max(Instant::now());
        *free = begins + takes;
        drop(free);
        std::thread::sleep(begins.saturating_duration_since(Instant::now()));
    }
}
