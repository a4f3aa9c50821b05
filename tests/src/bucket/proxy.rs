//! The proxy in front of the store. It passes the `Host` header on, which the clients sign.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{Method, StatusCode};
use parking_lot::Mutex;

use crate::reverse_proxy::{self, ServerThread};

/// A fault of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Connections are accepted, and no request is answered.
    Hang,
    /// Each request gets 503 and `SlowDown`.
    SlowDown,
    /// Each request gets 403 and `AccessDenied`.
    Denied,
    /// Each request gets 403 and `RequestTimeTooSkewed`.
    Skewed,
    /// Each write gets 403 and `AccessDenied`.
    ReadOnly,
    /// Each write gets 507 and `XMinioStorageFull`.
    Full,
    /// Each read gets 403 and `AccessDenied`.
    WriteOnly,
    /// Each listing gets 403 and `AccessDenied`.
    NoLists,
    /// Requests that send parts of an upload are not answered.
    KeepParts,
    /// Requests that delete links are not answered.
    KeepLinks,
    /// Bodies of content end in the middle.
    Cut,
    /// Bodies of content have a wrong first byte.
    Wrong,
    /// The id of an upload in parts has 900,000 bytes.
    LongId,
    /// The `ETag` of a part has 200,000 bytes.
    LongTag,
    /// Each request gets 403, with its credentials in the message.
    Echo,
    /// A page of a listing has no end.
    EndlessPage,
    /// A page of a listing names itself as the next one.
    SamePage,
    /// A page of a listing has a token of 100,000 bytes.
    LongToken,
    /// A page of a listing has one tag, and is not the last one.
    OneByOne,
}

/// A request to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// The path, with the bucket.
    pub path: String,
    /// The query; empty without one.
    pub query: String,
    /// The status of the answer.
    pub status: u16,
}

pub(super) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: ServerThread,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    fault: Mutex<Option<Fault>>,
}

#[derive(Clone)]
struct Open {
    shared: Arc<Shared>,
    store: String,
    client: reqwest::Client,
}

impl Proxy {
    /// Listens on a free port; the end of a test cuts no connection.
    pub(super) fn open(store: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let app = axum::Router::new().fallback(forward).with_state(Open {
            shared: Arc::clone(&shared),
            store: format!("http://{store}"),
            client: reverse_proxy::client()?,
        });
        Ok(Self {
            address,
            shared,
            _server: ServerThread::start(listener, None, app)?,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn fail(&self, fault: Option<Fault>) {
        *self.shared.fault.lock() = fault;
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// Returns true if the store accepted an object whose key ends like this; requests to Google's API encode slashes.
    pub(super) fn has_stored(&self, end: &str) -> bool {
        let is_stored = |seen: &Seen| {
            let key = seen.path.replace("%2F", "/");
            seen.method == Method::PUT && (200..300).contains(&seen.status) && key.ends_with(end)
        };
        self.shared.seen.lock().iter().any(is_stored)
    }

    pub(super) fn forget(&self) {
        self.shared.seen.lock().clear();
    }
}

impl Shared {
    fn log(&self, method: &Method, uri: &http::Uri, status: StatusCode) {
        let seen = Seen {
            method: method.clone(),
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            status: status.as_u16(),
        };
        self.seen.lock().push(seen);
    }
}

async fn forward(State(open): State<Open>, request: Request) -> Response {
    let fault = *open.shared.fault.lock();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let writes = matches!(method, Method::PUT | Method::POST);
    let refused = match fault {
        Some(Fault::KeepParts) if uri.query().is_some_and(|query| query.contains("partNumber")) => {
            return std::future::pending().await;
        }
        Some(Fault::Hang) => {
            open.shared.log(&method, &uri, StatusCode::REQUEST_TIMEOUT);
            return std::future::pending().await;
        }
        Some(Fault::SlowDown) => Some((StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
        Some(Fault::Denied) => Some((StatusCode::FORBIDDEN, "AccessDenied")),
        Some(Fault::Skewed) => Some((StatusCode::FORBIDDEN, "RequestTimeTooSkewed")),
        Some(Fault::ReadOnly) if writes => Some((StatusCode::FORBIDDEN, "AccessDenied")),
        Some(Fault::WriteOnly) if method == Method::GET => Some((StatusCode::FORBIDDEN, "AccessDenied")),
        Some(Fault::NoLists) if is_list(&request) => Some((StatusCode::FORBIDDEN, "AccessDenied")),
        Some(Fault::Full) if writes => Some((StatusCode::INSUFFICIENT_STORAGE, "XMinioStorageFull")),
        _ => None,
    };
    if let Some((status, code)) = refused {
        // Read, so that the connection can be used again.
        let _ = axum::body::to_bytes(request.into_body(), usize::MAX).await;
        open.shared.log(&method, &uri, status);
        return (
            status,
            format!("<Error><Code>{code}</Code><Message>no</Message></Error>"),
        )
            .into_response();
    }
    if let Some(answer) = fault.and_then(|fault| hostile(fault, &request)) {
        let _ = axum::body::to_bytes(request.into_body(), usize::MAX).await;
        open.shared.log(&method, &uri, answer.status());
        return answer;
    }
    let request = if fault == Some(Fault::KeepLinks) && uri.query() == Some("delete") {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
        if String::from_utf8_lossy(&body).contains("/link<") {
            return std::future::pending().await;
        }
        Request::from_parts(parts, Body::from(body))
    } else {
        request
    };
    let response = reverse_proxy::pass(&open.client, &open.store, request, |_| ()).await;
    open.shared.log(&method, &uri, response.status());
    let is_content = method == Method::GET && uri.path().ends_with("/data") && response.status().is_success();
    match fault {
        Some(fault @ (Fault::Cut | Fault::Wrong)) if is_content => damaged(response, fault),
        _ => response,
    }
}

/// Returns the answer of a store that lies.
fn hostile(fault: Fault, request: &Request) -> Option<Response> {
    let query = request.uri().query().unwrap_or_default();
    let is_list = is_list(request);
    let answer = match fault {
        Fault::LongId if *request.method() == Method::POST && query.starts_with("uploads") => {
            let id = "u".repeat(900_000);
            format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            )
            .into_response()
        }
        Fault::LongTag if query.contains("partNumber") => {
            let tag = format!("\"{}\"", "e".repeat(200_000));
            ([(http::header::ETAG, tag)], "").into_response()
        }
        Fault::Echo => {
            let value = |name| {
                let value = request.headers().get(name)?;
                value.to_str().ok().map(str::to_owned)
            };
            let (token, signed) = (value("x-amz-security-token"), value("authorization"));
            let body = format!(
                "<Error><Code>AccessDenied</Code><Message>echo {token:?} {signed:?}</Message></Error>"
            );
            (StatusCode::FORBIDDEN, body).into_response()
        }
        Fault::EndlessPage if is_list => {
            let item = "<Contents><Key>k</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>";
            let chunk = move || Ok::<_, io::Error>(item.repeat(1_000));
            let head = futures::stream::iter([Ok("<ListBucketResult>".to_owned())]);
            let items = futures::stream::repeat_with(chunk);
            Response::new(Body::from_stream(head.chain(items)))
        }
        Fault::SamePage if is_list => page("same"),
        Fault::LongToken if is_list => page(&"t".repeat(100_000)),
        Fault::OneByOne if is_list => page_of_tag(query),
        _ => return None,
    };
    Some(answer)
}

fn is_list(request: &Request) -> bool {
    let query = request.uri().query().unwrap_or_default();
    *request.method() == Method::GET && query.contains("list-type=2")
}

/// Returns a page of a listing of tags, with one tag whose name is the number of the page, that is not the last one.
fn page_of_tag(query: &str) -> Response {
    let value = |name: &str| {
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    let token = value("continuation-token").and_then(|token| token.parse::<u64>().ok());
    let number = token.unwrap_or_default();
    format!(
        "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>\
         <Contents><Key>{}{number}/current/link</Key><Size>71</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>\
         </ListBucketResult>",
        number + 1,
        value("prefix").unwrap_or_default()
    )
    .into_response()
}

/// Returns a page of a listing, without objects, that is not the last one.
fn page(token: &str) -> Response {
    format!(
        "<ListBucketResult><IsTruncated>true</IsTruncated>\
         <NextContinuationToken>{token}</NextContinuationToken></ListBucketResult>"
    )
    .into_response()
}

/// Returns the answer with a body that is cut in the middle, or whose first byte is wrong.
fn damaged(response: Response, fault: Fault) -> Response {
    let (parts, body) = response.into_parts();
    let length: u64 = parts
        .headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .unwrap_or_default();
    let mut sent = 0;
    let chunks = body.into_data_stream().map(move |chunk| {
        let chunk = chunk.map_err(io::Error::other)?;
        let at = sent;
        sent += chunk.len() as u64;
        match fault {
            Fault::Cut if sent > length / 2 => Err(io::Error::other("cut")),
            Fault::Wrong if at == 0 && !chunk.is_empty() => {
                let mut wrong = chunk.to_vec();
                wrong[0] ^= 1;
                Ok(bytes::Bytes::from(wrong))
            }
            _ => Ok(chunk),
        }
    });
    Response::from_parts(parts, Body::from_stream(chunks))
}
