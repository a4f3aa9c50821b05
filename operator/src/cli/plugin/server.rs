//! HTTP requests to a server of a mirror.

use std::{error::Error, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use mirror::tls::{self, TrustedCertificates};
use rustls::pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::route::{Connector, Route, Tls};
use crate::cli::Failure;

/// The body of a response.
pub(super) type Body = hyper::body::Incoming;

/// The time limit for the header of a response. A cold pull waits for the upstream.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);
/// The maximum size of a body that is read as a whole: a manifest has 4 MiB at most.
const MAX_BODY: usize = 8 << 20;

/// A server of a mirror.
pub(super) struct MirrorServer {
    /// The name for messages: a URL or a Pod.
    pub(super) name: String,
    client: Client<Connector, Full<Bytes>>,
    /// `http://HOST:PORT`; the connector speaks TLS.
    base: String,
    authorization: Option<HeaderValue>,
}

/// The user that pulls.
pub(super) struct Login {
    /// The name.
    pub(super) username: String,
    /// The password.
    pub(super) password: String,
}

impl MirrorServer {
    /// Returns the server at the end of a route.
    pub(super) fn new(name: String, host: &str, route: Route, tls: Option<Tls>) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(Connector { route, tls });
        Self {
            name,
            client,
            base: format!("http://{host}"),
            authorization: None,
        }
    }

    /// Returns the server at a URL.
    ///
    /// # Errors
    /// The URL or the certificates are not usable.
    pub(super) fn at(url: &str, ca: Option<&[u8]>) -> Result<Self, Failure> {
        let endpoint = ServerAddress::parse(url)?;
        let tls = endpoint.is_https.then(|| trust(&endpoint.host, ca)).transpose()?;
        let address = format!("{}:{}", endpoint.host, endpoint.port);
        Ok(Self::new(
            url.to_owned(),
            &address,
            Route::Address(address.clone()),
            tls,
        ))
    }

    /// Sends a login with each request.
    pub(super) fn with_login(mut self, login: Option<&Login>) -> Self {
        self.authorization = login.and_then(|Login { username, password }| {
            let login = STANDARD.encode(format!("{username}:{password}"));
            let mut value = HeaderValue::try_from(format!("Basic {login}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        self
    }

    /// Sends a request without a body.
    ///
    /// # Errors
    /// The server did not answer.
    pub(super) async fn get(&self, path: &str, accept: Option<&str>) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(Method::GET).uri(self.uri(path));
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        self.send(request.body(Full::default())).await
    }

    /// Sends JSON.
    ///
    /// # Errors
    /// The server did not answer.
    pub(super) async fn post(&self, path: &str, body: &impl Serialize) -> Result<Response<Body>, Failure> {
        let json = serde_json::to_vec(body).map_err(std::io::Error::other)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.uri(path))
            .header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(Full::new(json.into()))).await
    }

    fn uri(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn send(&self, request: http::Result<Request<Full<Bytes>>>) -> Result<Response<Body>, Failure> {
        let mut request = request.map_err(|error| Failure::Invalid(error.to_string()))?;
        if let Some(authorization) = &self.authorization {
            request
                .headers_mut()
                .insert(header::AUTHORIZATION, authorization.clone());
        }
        match timeout(ANSWER_TIMEOUT, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure::Environment(format!(
                "{}: {}",
                self.name,
                explain(&error)
            ))),
            Err(_) => Err(Failure::Environment(format!(
                "{}: no response within {} s",
                self.name,
                ANSWER_TIMEOUT.as_secs()
            ))),
        }
    }
}

/// Returns TLS to a server of this name. Without certificates those of the system are trusted.
pub(super) fn trust(host: &str, ca: Option<&[u8]>) -> Result<Tls, Failure> {
    let trusted = match ca {
        Some(pem) => {
            let mut trusted = TrustedCertificates::empty();
            let added = trusted.add_pem(pem);
            added.map_err(|error| Failure::Invalid(format!("CA certificates not usable: {error}")))?;
            Arc::new(trusted)
        }
        None => TrustedCertificates::system(),
    };
    let config = tls::client_config(trusted, false).map_err(std::io::Error::other)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| Failure::Invalid(format!("{host:?} is not a host: {error}")))?;
    Ok(Tls {
        config: Arc::new(config),
        name,
    })
}

/// The parts of `--endpoint`.
#[derive(Debug, PartialEq, Eq)]
struct ServerAddress {
    is_https: bool,
    host: String,
    port: u16,
}

impl ServerAddress {
    fn parse(url: &str) -> Result<Self, Failure> {
        let invalid = |reason: &str| Failure::Invalid(format!("--endpoint {url:?}: {reason}"));
        if !url.contains("://") {
            return Err(invalid(&format!(
                "has no scheme: write http://{url} or https://{url}"
            )));
        }
        let uri: Uri = url
            .parse()
            .map_err(|error| invalid(&format!("not a URL: {error}")))?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(invalid("expected http:// or https://")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            let host = uri
                .authority()
                .map_or("HOST:PORT", |authority| authority.as_str());
            let scheme = if is_https { "https" } else { "http" };
            return Err(invalid(&format!("has a path: write {scheme}://{host}")));
        }
        let authority = uri.authority().ok_or_else(|| invalid("has no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("has a user: use --username"));
        }
        let port = authority.port_u16();
        if port.is_none()
            && authority
                .as_str()
                .trim_end_matches(']')
                .rsplit_once(':')
                .is_some_and(|(host, _)| !host.contains('[') && !authority.host().starts_with('['))
        {
            return Err(invalid("has a port that is not a number from 1 to 65535"));
        }
        Ok(Self {
            is_https,
            host: authority.host().to_owned(),
            port: port.unwrap_or(if is_https { 443 } else { 80 }),
        })
    }
}

/// Explains a failed request, with the action for mistakes that are likely.
fn explain(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let advice = if text.contains("InvalidContentType") {
        "the server speaks http, not https: write http://"
    } else if text.contains("invalid HTTP version") {
        "the server speaks https, not http: write https://"
    } else if text.contains("UnknownIssuer")
        || text.contains("unknown issuer")
        || text.contains("is not trusted")
    {
        "give the CA that signed its certificate with --ca-file"
    } else if text.contains("refused") {
        "no server listens there: check address and port"
    } else {
        return text;
    };
    format!("{text}: {advice}")
}

/// Reads a whole body as JSON.
///
/// # Errors
/// The body is cut, too long, or not what is expected.
pub(super) async fn json<T: DeserializeOwned>(server: &str, response: Response<Body>) -> Result<T, Failure> {
    let bytes = whole(server, response).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::Environment(format!("{server}: unexpected response: {error}")))
}

/// Reads a whole body of at most [`MAX_BODY`] bytes.
///
/// # Errors
/// The body is cut or too long.
pub(super) async fn whole(server: &str, response: Response<Body>) -> Result<Bytes, Failure> {
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|error| Failure::Environment(format!("{server}: response cut: {error}")))?;
    Ok(body.to_bytes())
}

/// Returns the failure that a response reports: the message of a registry or of an action, or else the status.
pub(super) async fn reported(server: &str, what: &str, response: Response<Body>) -> Failure {
    let status = response.status();
    let body = whole(server, response).await.unwrap_or_default();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = body["errors"][0]["message"]
        .as_str()
        .or_else(|| body["message"].as_str());
    let message = message.map_or_else(|| status.to_string(), str::to_owned);
    let advice = match status {
        StatusCode::UNAUTHORIZED => ": give --username and --password-stdin",
        _ => "",
    };
    let text = format!("{what}: {message}{advice}");
    match status {
        StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Reference(text),
        StatusCode::BAD_REQUEST => Failure::Invalid(text),
        _ => Failure::Environment(text),
    }
}
