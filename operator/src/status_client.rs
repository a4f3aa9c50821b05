//! The client that reads the reports of servers and node agents.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// The time limit of a request.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum size of a report. That of a server with a full table of clients has half of it.
const MAX_REPORT_BYTES: usize = 2 << 20;

/// A client of the ports that answer `/status` with JSON. It keeps no connection open.
pub struct StatusClient(Client<HttpConnector, Empty<Bytes>>);

impl Default for StatusClient {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(connector);
        Self(client)
    }
}

impl StatusClient {
    /// Requests a report; `None` if there is no valid one within 3 s.
    pub async fn report<T: DeserializeOwned>(&self, address: SocketAddr) -> Option<T> {
        let report = timeout(TIMEOUT, self.request(address)).await.ok().flatten();
        if report.is_none() {
            tracing::debug!(%address, "no valid report");
        }
        report
    }

    async fn request<T: DeserializeOwned>(&self, address: SocketAddr) -> Option<T> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(address.to_string())
            .path_and_query("/status");
        let response = self.0.get(uri.build().ok()?).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let body = Limited::new(response.into_body(), MAX_REPORT_BYTES);
        serde_json::from_slice(&body.collect().await.ok()?.to_bytes()).ok()
    }
}
