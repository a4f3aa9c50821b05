//! The servers on which actions run: those of a mirror, or the one at an address.

use http::{Response, StatusCode};
use kube::ResourceExt;

use super::{
    cluster::MirrorArgs,
    server::{self, Body, MirrorServer},
};
use crate::cli::Failure;

/// The message for a server without the endpoints of actions.
const NO_LISTENER: &str = "no listener of actions is there: name the address of --actions-port (registry-mirror local) or \
                           http.actions.addr; pulls and /status have other ports";

/// The arguments that select servers.
#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "these comments are what --help prints")]
pub(super) struct ActionArgs {
    /// The listener of actions of a server without a cluster, such as http://127.0.0.1:5003 (http.actions.addr)
    /// [default: a port-forward to each Pod of the mirror]
    #[arg(long, value_name = "URL", conflicts_with_all = ["mirror", "pod"])]
    endpoint: Option<String>,
    #[command(flatten)]
    mirror: MirrorArgs,
}

impl ActionArgs {
    /// Returns the servers. Each has a cache of its own.
    ///
    /// # Errors
    /// There is no such mirror, or none of its Pods runs.
    pub(super) async fn servers(&self) -> Result<Vec<MirrorServer>, Failure> {
        if let Some(url) = &self.endpoint {
            return Ok(vec![MirrorServer::at(url, None)?]);
        }
        let cluster = self.mirror.cluster.connect().await?;
        let mirror = cluster.mirror(self.mirror.mirror.as_deref()).await?;
        let pods = cluster
            .running(&mirror.name_any(), self.mirror.pod.as_deref())
            .await?;
        Ok(pods.iter().map(|pod| cluster.actions(pod)).collect())
    }
}

/// Returns the response to an action, unless it reports a failure.
///
/// # Errors
/// The failure.
pub(super) async fn accepted(
    server: &MirrorServer,
    what: &str,
    response: Response<Body>,
) -> Result<Response<Body>, Failure> {
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::NOT_FOUND => {
            let body = server::whole(&server.name, response).await?;
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let message = body["message"].as_str().unwrap_or(NO_LISTENER);
            Err(Failure::Reference(format!("{}: {what}: {message}", server.name)))
        }
        _ => Err(server::reported(&server.name, &format!("{}: {what}", server.name), response).await),
    }
}
