//! A load client: blocking sockets, one thread a connection, bodies thrown away.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// One connection that is kept.
pub(crate) struct Connection(BufReader<TcpStream>);

/// What one request took.
pub(crate) struct Took {
    pub(crate) first_byte: Duration,
    pub(crate) whole: Duration,
    pub(crate) bytes: u64,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_mins(2)))?;
        Ok(Self(BufReader::with_capacity(256 << 10, stream)))
    }

    /// `GET`; anything but 200 is an error.
    pub(crate) fn get(&mut self, path: &str) -> io::Result<Took> {
        let started = Instant::now();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let length = self.head()?;
        let mut body = self.0.by_ref().take(length);
        let mut first_byte = None;
        let mut bytes = 0;
        loop {
            let there = body.fill_buf()?.len();
            first_byte.get_or_insert_with(|| started.elapsed());
            if there == 0 {
                break;
            }
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

    /// The length of the body.
    fn head(&mut self) -> io::Result<u64> {
        let (mut line, mut status, mut length) = (String::new(), String::new(), 0);
        loop {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
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
}

/// Asks for one path over and over on several connections at once; what each request took.
pub(crate) fn load(address: SocketAddr, path: &str, connections: usize, for_seconds: f64) -> Vec<Took> {
    let until = Instant::now() + Duration::from_secs_f64(for_seconds);
    each(connections, || {
        let mut connection = Connection::open(address).expect("the server listens");
        let mut took = Vec::new();
        while Instant::now() < until || took.is_empty() {
            took.push(
                connection
                    .get(path)
                    .unwrap_or_else(|error| panic!("{address}{path}: {error}")),
            );
        }
        took
    })
}

/// Asks once on each of several connections at once.
pub(crate) fn herd(address: SocketAddr, path: &str, clients: usize) -> Vec<Took> {
    each(clients, || {
        let mut connection = Connection::open(address).expect("the server listens");
        vec![
            connection
                .get(path)
                .unwrap_or_else(|error| panic!("{address}{path}: {error}")),
        ]
    })
}

fn each(threads: usize, work: impl Fn() -> Vec<Took> + Sync) -> Vec<Took> {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        running
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    })
}
