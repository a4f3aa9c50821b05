//! The bodies of actions, in JSON.

use std::error::Error;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use super::ActionError;

/// The longest body of an action, in bytes.
pub(super) const MAX_BODY: usize = 64 * 1024;

/// A body that was read.
pub(super) struct ActionBody<T>(pub(super) T);

/// The reason why a body is no request.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidBody {
    /// It is larger than [`MAX_BODY`].
    #[error("the body of the request is larger than {MAX_BODY} bytes")]
    TooLarge,
    /// It is not announced as JSON.
    #[error("the request has no JSON: send Content-Type: application/json")]
    ContentType,
    /// It has another syntax (400) or other members (422).
    #[error("the body of the request is invalid: {1}")]
    Json(StatusCode, String),
    /// It did not come to its end.
    #[error("the body of the request can't be read")]
    Unread,
}

impl InvalidBody {
    /// Returns the status of the response.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Json(status, _) => *status,
            Self::Unread => StatusCode::BAD_REQUEST,
        }
    }
}

impl From<JsonRejection> for InvalidBody {
    fn from(rejection: JsonRejection) -> Self {
        match &rejection {
            JsonRejection::MissingJsonContentType(_) => Self::ContentType,
            JsonRejection::JsonDataError(_) | JsonRejection::JsonSyntaxError(_) => {
                Self::Json(rejection.status(), cause(&rejection))
            }
            _ if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge,
            _ => Self::Unread,
        }
    }
}

/// Returns the last cause, which names the member and the place.
fn cause(error: &dyn Error) -> String {
    match error.source() {
        Some(next) => cause(next),
        None => error.to_string(),
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for ActionBody<T> {
    type Rejection = ActionError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ActionError> {
        let read = Json::from_request(request, state).await;
        let Json(value) = read.map_err(InvalidBody::from)?;
        Ok(Self(value))
    }
}
