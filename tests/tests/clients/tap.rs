//! Between a client and a mirror: remembers what both say, and cuts a connection once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Listens until it is dropped.
pub(crate) struct Tap {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    to: SocketAddr,
    requests: Mutex<String>,
    answers: Mutex<String>,
    /// The connection whose answers reach so many bytes ends; then none does.
    cut: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl Tap {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            to,
            requests: Mutex::default(),
            answers: Mutex::default(),
            cut: AtomicU64::new(NEVER),
        });
        let (accepting, own) = (shared.clone(), shared);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(accepting.clone(), client));
            }
        });
        Self {
            address,
            shared: own,
            task: task.abort_handle(),
        }
    }

    /// Ends the next connection whose answers have so many bytes.
    pub(crate) fn cut_once_at(&self, bytes: u64) {
        self.shared.cut.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn was_cut(&self) -> bool {
        self.shared.cut.load(Ordering::SeqCst) == NEVER
    }

    /// All that clients said, in lower case.
    pub(crate) fn requests(&self) -> String {
        text(&self.shared.requests)
    }

    /// The heads of all answers, in lower case.
    pub(crate) fn answers(&self) -> String {
        text(&self.shared.answers)
    }

    /// No answer asked for credentials, and no request had any.
    pub(crate) fn saw_no_credentials(&self) -> Result<(), String> {
        let (requests, answers) = (self.requests(), self.answers());
        if requests.contains("\nauthorization:") || answers.contains("\nwww-authenticate:") {
            return Err(format!("{requests}\n{answers}"));
        }
        Ok(())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn text(of: &Mutex<String>) -> String {
    of.lock().clone()
}

fn append(of: &Mutex<String>, bytes: &[u8]) {
    let said = String::from_utf8_lossy(bytes).to_lowercase();
    of.lock().push_str(&said);
}

async fn pass(shared: Arc<Shared>, client: TcpStream) {
    let Ok(server) = TcpStream::connect(shared.to).await else {
        return;
    };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = asking(&shared, from_client, to_server) => {}
        () = answering(&shared, from_server, to_client) => {}
    }
}

async fn asking(shared: &Shared, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        append(&shared.requests, &buffer[..read]);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    // Some clients end their side when they have asked.
    std::future::pending::<()>().await;
}

async fn answering(shared: &Shared, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (mut buffer, mut passed) = (vec![0; 16 * 1024], 0_u64);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if buffer.starts_with(b"HTTP/1.1 ") {
            let end = buffer[..read].windows(4).position(|four| four == b"\r\n\r\n");
            append(&shared.answers, &buffer[..end.unwrap_or(read)]);
            append(&shared.answers, b"\n");
        }
        passed += read as u64;
        let cut = shared.cut.load(Ordering::SeqCst);
        let this = passed >= cut && shared.cut.swap(NEVER, Ordering::SeqCst) == cut;
        if this || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
