//! The listener of actions: the cached images, purges, prewarming. It is bound to a loopback address, so that only
//! processes of this machine, or the port-forward of a Pod, reach it (docs/adr/0039-actions.md).

mod body;
mod guard;

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use body::{ActionBody, InvalidBody, MAX_BODY};

use crate::manifest::{ImagePlatform, InvalidPlatform};
use crate::name::{InvalidName, Reference, Repository};
use crate::pull::{PlatformSelection, Prewarm, PrewarmError, PrewarmEvent, Pull, UpstreamSelectionError};
use crate::store::{CachedImage, PurgeTarget, Purged, StageError};

/// The most requests for images or prewarmings at the same time.
const MAX_AT_A_TIME: usize = 4;
/// The most platforms of one prewarming.
const MAX_PLATFORMS: usize = 16;
/// The number of lines that wait for a slow reader.
const WAITING_LINES: usize = 64;
/// The media type of a sequence of lines with a JSON value each.
const JSON_LINES: &str = "application/x-ndjson";

/// A line of `GET /images`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageLine {
    /// The repository with its registry, such as `docker.io/library/nginx`.
    pub repository: String,
    /// The tag; absent for an image that was pulled by digest only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The digest of the manifest.
    pub digest: String,
    /// The cached bytes. Images share layers.
    pub bytes: u64,
    /// The last use, in seconds since 1970.
    pub last_used: i64,
}

/// The body of `POST /purge`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "an object with registry, repository and reference"
)]
pub struct PurgeRequest {
    /// The registry, as clients name it.
    pub registry: String,
    /// The repository in it.
    pub repository: String,
    /// A tag or digest; absent: the whole repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// The response to `POST /purge`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PurgeResponse {
    /// The repository.
    pub repository: String,
    /// The number of removed tags.
    pub tags: u64,
    /// The number of removed manifests.
    pub manifests: u64,
    /// The number of removed layers and configurations.
    pub blobs: u64,
    /// The bytes that became free.
    pub bytes: u64,
}

/// The body of `POST /prewarm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "an object with registry, repository, reference and platforms"
)]
pub struct PrewarmRequest {
    /// The registry, as clients name it.
    pub registry: String,
    /// The repository in it.
    pub repository: String,
    /// The tag or digest.
    pub reference: String,
    /// The platforms of an index; `all` is every platform. Empty: the platform of the server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
}

/// The body of an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionFailure {
    /// The reason.
    pub message: String,
}

#[derive(Deserialize)]
struct ImagesQuery {
    #[serde(default)]
    q: String,
}

#[derive(Clone)]
struct ActionState {
    pull: Arc<Pull>,
    permits: Arc<Semaphore>,
}

/// Creates the service on top of a pull path.
pub fn service(pull: Arc<Pull>) -> Router {
    let permits = Arc::new(Semaphore::new(MAX_AT_A_TIME));
    Router::new()
        .route("/images", get(images))
        .route("/purge", post(purge))
        .route("/prewarm", post(prewarm))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(guard::check))
        .with_state(ActionState { pull, permits })
}

/// The reason why an action does not run.
#[derive(Debug, thiserror::Error)]
enum ActionError {
    /// The body is no request.
    #[error(transparent)]
    Body(#[from] InvalidBody),
    /// Too many run.
    #[error("{MAX_AT_A_TIME} actions are running: try again when one has ended")]
    Busy,
    /// The mirror has no such repository.
    #[error(transparent)]
    NoRepository(#[from] UpstreamSelectionError),
    /// The tag or digest is neither.
    #[error(transparent)]
    Reference(#[from] InvalidName),
    /// A platform is none.
    #[error(transparent)]
    Platform(#[from] InvalidPlatform),
    /// Too many platforms.
    #[error("more than {MAX_PLATFORMS} platforms: use all")]
    TooManyPlatforms,
    /// The store removes nothing.
    #[error(transparent)]
    Store(#[from] StageError),
}

impl IntoResponse for ActionError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Body(error) => error.status(),
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::NoRepository(_) => StatusCode::NOT_FOUND,
            Self::Reference(_) | Self::Platform(_) | Self::TooManyPlatforms => StatusCode::BAD_REQUEST,
            Self::Store(StageError::ReadOnly) => StatusCode::CONFLICT,
            Self::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let message = self.to_string();
        (status, Json(ActionFailure { message })).into_response()
    }
}

impl ActionState {
    fn permit(&self) -> Result<OwnedSemaphorePermit, ActionError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        permit.map_err(|_| ActionError::Busy)
    }

    fn repository(&self, registry: &str, name: &str) -> Result<Repository, ActionError> {
        Ok(self.pull.select_repository(Some(registry), name)?)
    }
}

/// Returns a response with a line for each value, until the sender is dropped.
fn lines<T: Serialize + Send + 'static>(values: Receiver<T>) -> Response {
    let lines = stream::unfold(values, |mut values| async {
        let value = values.recv().await?;
        let mut line = serde_json::to_vec(&value).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), values))
    });
    ([(header::CONTENT_TYPE, JSON_LINES)], Body::from_stream(lines)).into_response()
}

async fn images(
    State(actions): State<ActionState>,
    Query(query): Query<ImagesQuery>,
) -> Result<Response, ActionError> {
    let permit = actions.permit()?;
    let (sender, receiver) = channel(WAITING_LINES);
    tokio::spawn(async move {
        let _permit = permit;
        let lines = sender.clone();
        let visit = move |image: CachedImage| lines.blocking_send(ImageLine::from(image)).is_ok();
        tokio::select! {
            listed = actions.pull.each_image(query.q, visit) => if let Err(error) = listed {
                warn!(%error, "the cached images could not be listed");
            },
            () = sender.closed() => {}
        }
    });
    Ok(lines(receiver))
}

async fn purge(
    State(actions): State<ActionState>,
    ActionBody(request): ActionBody<PurgeRequest>,
) -> Result<Json<PurgeResponse>, ActionError> {
    let repository = actions.repository(&request.registry, &request.repository)?;
    let target = match request.reference.as_deref().map(str::parse).transpose()? {
        None => PurgeTarget::All,
        Some(Reference::Tag(tag)) => PurgeTarget::Tag(tag),
        Some(Reference::Digest(digest)) => PurgeTarget::Digest(digest),
    };
    let Purged {
        tags,
        manifests,
        blobs,
        bytes,
    } = actions.pull.purge(&repository, target).await?;
    let reference = request.reference;
    info!(%repository, reference, tags, manifests, blobs, bytes, "content purged by an action");
    Ok(Json(PurgeResponse {
        repository: repository.to_string(),
        tags,
        manifests,
        blobs,
        bytes,
    }))
}

async fn prewarm(
    State(actions): State<ActionState>,
    ActionBody(request): ActionBody<PrewarmRequest>,
) -> Result<Response, ActionError> {
    let wanted = Prewarm {
        repository: actions.repository(&request.registry, &request.repository)?,
        reference: request.reference.parse()?,
        platforms: selection(&request.platforms)?,
    };
    let permit = actions.permit()?;
    let (sender, receiver) = channel(WAITING_LINES);
    tokio::spawn(async move {
        let _permit = permit;
        let (repository, reference) = (wanted.repository.to_string(), wanted.reference.to_string());
        match actions.pull.prewarm(&wanted, &sender).await {
            Ok(()) => info!(repository, reference, "image prewarmed by an action"),
            Err(PrewarmError::Ended) => info!(repository, reference, "prewarming ended by its caller"),
            Err(error) => {
                warn!(repository, reference, %error, "image not prewarmed");
                let message = error.to_string();
                // The caller may have ended the request.
                let _ = sender.send(PrewarmEvent::Error { message }).await;
            }
        }
    });
    Ok(lines(receiver))
}

fn selection(platforms: &[String]) -> Result<PlatformSelection, ActionError> {
    if platforms.len() > MAX_PLATFORMS {
        return Err(ActionError::TooManyPlatforms);
    }
    if platforms.iter().any(|platform| platform == "all") {
        return Ok(PlatformSelection::All);
    }
    let parsed = platforms.iter().map(|platform| platform.parse::<ImagePlatform>());
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    Ok(PlatformSelection::Some(if parsed.is_empty() {
        vec![ImagePlatform::of_this_machine()]
    } else {
        parsed
    }))
}

impl From<CachedImage> for ImageLine {
    fn from(image: CachedImage) -> Self {
        Self {
            repository: image.repository.to_string(),
            tag: match image.reference {
                Reference::Tag(tag) => Some(tag.to_string()),
                Reference::Digest(_) => None,
            },
            digest: image.digest.to_string(),
            bytes: image.bytes,
            last_used: image.used / 1000,
        }
    }
}
