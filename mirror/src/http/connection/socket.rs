//! The sockets of clients.

use std::io;
use std::net;
use std::os::unix;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::client_memory::ConnectionMemory;
use super::limit::ConnectionSlot;
use super::mismatch::ConnectionKind;
use super::protocols::PREFACE;
use super::sendfile::SendfileStream;
use super::{Connection, Listener};
use crate::client_address::ClientAddress;
use crate::http::Peer;

/// An accepted socket that no worker drives yet.
pub(super) enum Accepted {
    Tcp(net::TcpStream, net::SocketAddr),
    Unix(unix::net::UnixStream),
}

/// The socket of a connection.
pub(super) enum Socket {
    Tcp(SendfileStream),
    Unix(UnixStream),
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Listener {
    /// Waits for the next client.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Accepted::Tcp(stream.into_std()?, peer))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Unix(stream.into_std()?))
            }
        }
    }
}

impl Accepted {
    /// Returns the address that the client is counted by.
    pub(super) fn address(&self) -> ClientAddress {
        ClientAddress::of_ip(match self {
            Self::Tcp(_, peer) => Some(peer.ip()),
            Self::Unix(_) => None,
        })
    }

    /// Sets up the connection on the worker that calls this.
    pub(super) fn connection(self, slot: &ConnectionSlot) -> io::Result<Connection> {
        let memory = ConnectionMemory::new(Arc::clone(&slot.memory), Arc::clone(&slot.progress));
        let memory = Arc::new(memory);
        match self {
            Self::Tcp(stream, peer) => {
                // Small responses must not wait for the acknowledgement of the previous one.
                stream.set_nodelay(true)?;
                let stream = SendfileStream::new(TcpStream::from_std(stream)?);
                let peer = Peer {
                    sendfile: Some(stream.queue()),
                    ..Peer::with_memory(&peer.to_string(), memory)
                };
                Ok(Connection {
                    socket: Socket::Tcp(stream),
                    peer,
                })
            }
            Self::Unix(stream) => Ok(Connection {
                socket: Socket::Unix(UnixStream::from_std(stream)?),
                peer: Peer::with_memory("unix", memory),
            }),
        }
    }
}

impl Socket {
    /// Waits for the first bytes, or the end. hyper's own detection of HTTP/2 would allocate a double-size buffer that an
    /// idle connection keeps.
    pub(super) async fn first_bytes(&self) -> io::Result<ConnectionKind> {
        let mut first = [0; PREFACE.len()];
        match self {
            Self::Tcp(stream) => {
                let length = stream.peek(&mut first).await?;
                Ok(ConnectionKind::classify(first.get(..length).unwrap_or_default()))
            }
            Self::Unix(stream) => stream.readable().await.map(|()| ConnectionKind::MayBeHttp2),
        }
    }

    /// Returns the bytes of the socket.
    pub(super) fn stream(self) -> Box<dyn Stream> {
        match self {
            Self::Tcp(stream) => Box::new(stream),
            Self::Unix(stream) => Box::new(stream),
        }
    }
}
