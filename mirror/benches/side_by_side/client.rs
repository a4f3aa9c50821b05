//! A load client: blocking sockets, one thread a connection, bodies thrown away.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use mirror::digest::{Algorithm, Hasher};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::upstream::TOKEN;

/// The time after which a silent server has failed. Distribution 2.8 keeps a client of a herd waiting for 17 s.
const PATIENCE: Duration = Duration::from_secs(40);

/// The size in bytes, and the number, of the buffers of a verified copy.
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 8;

/// The address of a server, with its TLS configuration.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// The value of `Authorization`, for servers that accept one.
    pub(crate) token: Option<&'static str>,
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// One connection that is kept, and the headers of each request.
pub(crate) struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    headers: String,
}

/// The durations of one request.
pub(crate) struct Took {
    pub(crate) first_byte: Duration,
    pub(crate) whole: Duration,
    pub(crate) bytes: u64,
}

impl Target {
    /// Returns the target of a server that takes the token of the upstream.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        let token = Some(TOKEN);
        Self {
            address,
            tls: None,
            token,
        }
    }

    pub(crate) fn connect(&self) -> io::Result<Connection> {
        self.connect_for(PATIENCE)
    }

    /// One that waits no longer than this for more.
    pub(crate) fn connect_for(&self, patience: Duration) -> io::Result<Connection> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = "localhost".try_into().map_err(io::Error::other)?;
                let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
                Box::new(StreamOwned::new(connection, stream))
            }
        };
        Ok(self.connection(BufReader::with_capacity(256 << 10, stream)))
    }

    /// One that takes little and slowly, so that a thousand of them fit.
    pub(crate) fn connect_slowly(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 64 << 10)?;
        Ok(self.connection(BufReader::new(Box::new(stream))))
    }

    fn connection(&self, stream: BufReader<Box<dyn Stream>>) -> Connection {
        let token = self
            .token
            .map_or(String::new(), |token| format!("Authorization: {token}\r\n"));
        let headers = format!(
            "Host: {}\r\nAccept: application/vnd.oci.image.manifest.v1+json\r\n{token}\r\n",
            self.address
        );
        Connection { stream, headers }
    }
}

impl Connection {
    /// `GET`, to the end of the body; anything but 200 is an error.
    pub(crate) fn get(&mut self, path: &str) -> io::Result<Took> {
        self.read(path, |_| ())
    }

    /// Sends a GET of content; a body that does not have the digest at the end of the path is an error.
    pub(crate) fn get_verified(&mut self, path: &str) -> io::Result<Took> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let took = self.read(path, |bytes| hasher.update(bytes))?;
        if path.ends_with(hasher.finish().as_str()) {
            Ok(took)
        } else {
            Err(io::Error::other("wrong bytes"))
        }
    }

    /// Sends a GET of content, and writes the body to a file and hashes it as it comes, each on a thread of its own: the
    /// least that a server does with content that it has to verify and keep.
    pub(crate) fn copy_verified(&mut self, path: &str, digest: &str, file: &File) -> io::Result<Took> {
        let started = Instant::now();
        let length = self.ask(path)?;
        let first_byte = started.elapsed();
        let found = std::thread::scope(|scope| -> io::Result<_> {
            let [free, received, written] = [(); 3].map(|()| sync_channel::<(Vec<u8>, usize)>(CHUNKS));
            for _ in 0..CHUNKS {
                free.0.send((vec![0; CHUNK], 0)).map_err(io::Error::other)?;
            }
            let (received, next) = received;
            let writer = scope.spawn(move || {
                next.iter().try_for_each(|(chunk, size)| {
                    (&*file).write_all(&chunk[..size])?;
                    written.0.send((chunk, size)).map_err(io::Error::other)
                })
            });
            let hasher = scope.spawn(move || {
                let mut hasher = Hasher::new(Algorithm::Sha256);
                for (chunk, size) in written.1 {
                    hasher.update(&chunk[..size]);
                    // The reader may have ended.
                    let _ = free.0.send((chunk, 0));
                }
                hasher.finish()
            });
            let mut body = self.stream.by_ref().take(length);
            while body.limit() > 0 {
                let (mut chunk, _) = free.1.recv().map_err(io::Error::other)?;
                let size = body.read(&mut chunk)?;
                if size == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                received.send((chunk, size)).map_err(io::Error::other)?;
            }
            drop(received);
            writer.join().unwrap()?;
            Ok(hasher.join().unwrap())
        })?;
        if !digest.ends_with(found.as_str()) {
            return Err(io::Error::other("wrong bytes"));
        }
        Ok(Took {
            first_byte,
            whole: started.elapsed(),
            bytes: length,
        })
    }

    /// Sends a GET of a text.
    pub(crate) fn text(&mut self, path: &str) -> io::Result<String> {
        let mut text = Vec::new();
        self.read(path, |bytes| text.extend_from_slice(bytes))?;
        String::from_utf8(text).map_err(io::Error::other)
    }

    fn read(&mut self, path: &str, mut each: impl FnMut(&[u8])) -> io::Result<Took> {
        let started = Instant::now();
        let length = self.ask(path)?;
        let mut body = self.stream.by_ref().take(length);
        let mut first_byte = None;
        let mut bytes = 0;
        loop {
            let part = body.fill_buf()?;
            first_byte.get_or_insert_with(|| started.elapsed());
            let there = part.len();
            if there == 0 {
                break;
            }
            each(part);
            body.consume(there);
            bytes += there as u64;
        }
        if bytes != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Took {
            first_byte: first_byte.unwrap_or_default(),
            whole: started.elapsed(),
            bytes,
        })
    }

    /// `GET`, up to the head; the length of the body.
    pub(crate) fn ask(&mut self, path: &str) -> io::Result<u64> {
        let request = format!("GET {path} HTTP/1.1\r\n{}", self.headers);
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut status, mut length) = (String::new(), String::new(), 0);
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end().split_once(": ") {
                None if line.trim_end().is_empty() => break,
                None => line.trim_end().clone_into(&mut status),
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().map_err(io::Error::other)?;
                }
                Some(_) => {}
            }
        }
        if status.contains(" 200") {
            Ok(length)
        } else {
            Err(io::Error::other(status))
        }
    }

    /// Reads this much of a body and leaves the rest.
    pub(crate) fn take(&mut self, bytes: usize) -> io::Result<()> {
        self.stream.read_exact(&mut vec![0; bytes])
    }
}

/// Asks for one path over and over on several connections at once; what each request took.
pub(crate) fn load(
    target: &Target,
    path: &str,
    connections: usize,
    for_seconds: f64,
) -> io::Result<Vec<Took>> {
    let until = Instant::now() + Duration::from_secs_f64(for_seconds);
    each(connections, |_| {
        let mut connection = target.connect()?;
        let mut took = Vec::new();
        while Instant::now() < until || took.is_empty() {
            took.push(connection.get(path)?);
        }
        Ok(took)
    })
}

/// Each of several clients asks once for its path, in turn at these servers, one after the other in this distance, or all
/// at once.
pub(crate) fn herd(
    targets: &[Target],
    paths: &[String],
    clients: usize,
    apart: Duration,
) -> io::Result<Vec<Took>> {
    each(clients, |number| {
        std::thread::sleep(apart * u32::try_from(number).unwrap());
        let target = &targets[number % targets.len()];
        Ok(vec![target.connect()?.get(&paths[number % paths.len()])?])
    })
}

/// Returns the results of all threads, or the first failure.
fn each(threads: usize, work: impl Fn(usize) -> io::Result<Vec<Took>> + Sync) -> io::Result<Vec<Took>> {
    let all = at_once(threads, work)
        .into_iter()
        .collect::<io::Result<Vec<_>>>()?;
    Ok(all.into_iter().flatten().collect())
}

/// Runs so many threads, and returns the results of all.
pub(crate) fn at_once<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || work(number)))
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
