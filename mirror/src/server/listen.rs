//! Listening addresses.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::{Error, umask};
use crate::config::http::{Admin, Listen};
use crate::http::connection::Listener;

/// Opens the listener for clients; returns it with its address.
pub(super) async fn clients(listen: &Listen) -> Result<(Listener, String), Error> {
    const KEY: &str = "http.addr";
    match listen {
        Listen::Tcp(address) => {
            let listener = bind(KEY, address).await?;
            let local = listener.local_addr();
            let local = local.map_err(|source| failed(KEY, address, source))?;
            Ok((Listener::Tcp(listener), local.to_string()))
        }
        Listen::Unix(path) => {
            let address = path.display().to_string();
            let listener = unix(path).await;
            let listener = listener.map_err(|source| failed(KEY, &address, source))?;
            Ok((Listener::Unix(listener), address))
        }
    }
}

/// Opens the listener of the admin port, if it is configured; returns it with its settings.
pub(super) async fn admin(admin: Option<&Admin>) -> Result<Option<(TcpListener, Admin)>, Error> {
    match admin {
        Some(admin) => Ok(Some((bind("http.debug.addr", &admin.addr).await?, admin.clone()))),
        None => Ok(None),
    }
}

/// Opens the listener of the peer port.
pub(super) async fn peers(address: &str) -> Result<Listener, Error> {
    bind("peers.addr", address).await.map(Listener::Tcp)
}

/// Opens the listener of actions, if it is configured.
pub(super) async fn actions(address: Option<&str>) -> Result<Option<TcpListener>, Error> {
    match address {
        Some(address) => bind("http.actions.addr", address).await.map(Some),
        None => Ok(None),
    }
}

async fn bind(key: &'static str, address: &str) -> Result<TcpListener, Error> {
    tcp(address).await.map_err(|source| failed(key, address, source))
}

fn failed(key: &'static str, address: &str, source: io::Error) -> Error {
    Error::Listen {
        key,
        address: address.to_owned(),
        source,
    }
}

/// Binds a TCP address. An address without a host means all addresses: both families in one socket, or IPv4 alone
/// without IPv6.
async fn tcp(address: &str) -> io::Result<TcpListener> {
    let Some(port) = address.strip_prefix(':') else {
        return TcpListener::bind(address).await;
    };
    match TcpListener::bind(format!("[::]:{port}")).await {
        Err(error) if error.kind() != ErrorKind::AddrInUse => {
            TcpListener::bind(format!("0.0.0.0:{port}")).await
        }
        bound => bound,
    }
}

/// Binds a socket in the file system. A socket that an ended server left is replaced; one that answers is in use.
async fn unix(path: &Path) -> io::Result<UnixListener> {
    let bound = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_left_behind(path).await => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }?;
    umask::open_socket_to_clients(path)?;
    Ok(bound)
}

async fn is_left_behind(path: &Path) -> bool {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
    socket && UnixStream::connect(path).await.is_err_and(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_host_means_every_address() {
        let (_listener, address) = clients(&Listen::Tcp(":0".into())).await.unwrap();
        let port = address.rsplit_once(':').unwrap().1;
        assert!(
            tokio::net::TcpStream::connect(format!("127.0.0.1:{port}"))
                .await
                .is_ok()
        );
    }

    /// The error for a port that is in use names the address and the key.
    #[tokio::test]
    async fn taken_port_error_names_its_key() {
        let (_listener, address) = clients(&Listen::Tcp("127.0.0.1:0".into())).await.unwrap();
        let error = clients(&Listen::Tcp(address.clone())).await.err().unwrap();
        assert!(
            error.to_string().contains(&format!("{address} (http.addr)")),
            "{error}"
        );
        assert!(error.is_environment());
    }

    /// A stale socket file is replaced, but not one that is in use.
    #[tokio::test]
    async fn stale_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(directory.path().join("mirror.sock"));
        let (first, _) = clients(&listen).await.unwrap();
        assert!(clients(&listen).await.is_err());
        drop(first);
        assert!(clients(&listen).await.is_ok());
    }

    /// A file at the socket's path that is no socket stays, and is an error.
    #[tokio::test]
    async fn non_socket_file_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes");
        std::fs::write(&path, "keep").unwrap();
        assert!(clients(&Listen::Unix(path.clone())).await.is_err());
        assert_eq!(std::fs::read_to_string(path).unwrap(), "keep");
    }
}
