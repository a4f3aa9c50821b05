//! Connections to a server: to an address, or through the API server to a port of a Pod.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::cluster::error_message;

/// The time limit for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The way to a server.
#[derive(Clone)]
pub(super) enum Route {
    /// A TCP address, `HOST:PORT`.
    Address(String),
    /// A port of a Pod, by a port-forward.
    Pod {
        /// The Pods of the namespace.
        pods: Box<Api<Pod>>,
        /// The name of the Pod.
        pod: String,
        /// The port. A port-forward enters at the loopback address of the Pod.
        port: u16,
    },
}

/// TLS to a server.
#[derive(Clone)]
pub(super) struct Tls {
    /// The trusted certificates.
    pub(super) config: Arc<ClientConfig>,
    /// The name that the certificate must have.
    pub(super) name: ServerName<'static>,
}

/// A connector for an HTTP client; it ignores the host of the URL.
#[derive(Clone)]
pub(super) struct Connector {
    /// The way to the server.
    pub(super) route: Route,
    /// TLS, for an https endpoint.
    pub(super) tls: Option<Tls>,
}

/// An open connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<Box<dyn Stream>>> {
        let connecting = async {
            let stream = self.route.connect().await?;
            let Some(Tls { config, name }) = self.tls else {
                return Ok(stream);
            };
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        };
        let late = || {
            let message = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, message)
        };
        let stream = timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| late())?;
        stream.map(TokioIo::new)
    }
}

impl Route {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Address(address) => {
                let stream = TcpStream::connect(address).await?;
                Ok(Box::new(stream))
            }
            Self::Pod { pods, pod, port } => {
                let failed =
                    |reason: String| io::Error::other(format!("port-forward to Pod {pod}: {reason}"));
                let opened = pods.portforward(pod, &[*port]).await;
                let mut forwarder = opened.map_err(|error| failed(forward_failure(&error)))?;
                let stream = forwarder
                    .take_stream(*port)
                    .ok_or_else(|| failed("no stream".to_owned()))?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// Explains the failure of a port-forward.
fn forward_failure(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.is_forbidden() => format!(
            "{}; ask for permission to get and create pods/portforward in the namespace",
            status.message
        ),
        error => error_message(error),
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Box<dyn Stream>>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

impl Connection for Box<dyn Stream> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
