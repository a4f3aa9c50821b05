//! Redirects: their targets, and the requests that follow them.

use http::header::{AUTHORIZATION, LOCATION, REFERER};
use http::{HeaderMap, HeaderValue};
use reqwest::Response;
use url::Url;

use crate::upstream::bare;
use crate::upstream::transport::HttpRequest;

/// The most bytes of a Location: signed URLs of storages have up to 4 KiB.
pub(crate) const MAX_LOCATION: usize = 16 * 1024;
/// The most bytes of a host's name (RFC 1035, 2.3.4).
const MAX_HOST: usize = 253;
/// The maximum number of requests, more than any registry needs.
pub(in crate::upstream) const MAX_HOPS: usize = 8;

/// The reason why a redirect is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::upstream) enum Refused {
    #[error("a redirect without a readable Location")]
    Unreadable,
    #[error("a redirect to a URL of more than {MAX_LOCATION} bytes, or to a host of more than {MAX_HOST}")]
    TooLong,
    #[error("a redirect from https to http")]
    Downgrade,
    #[error("a redirect to something else than http or https")]
    Scheme,
    #[error("a redirect with a user in its URL")]
    UserInfo,
}

/// Returns true if an answer asks to send the same request elsewhere. Without a Location it is an answer like any other.
pub(in crate::upstream) fn is_redirect(answer: &Response) -> bool {
    let asks = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    asks && answer.headers().contains_key(LOCATION)
}

/// Returns the URL that an answer from `from` with these headers leads to.
pub(in crate::upstream) fn target(from: &Url, headers: &HeaderMap) -> Result<Url, Refused> {
    let text = headers
        .get(LOCATION)
        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
        .ok_or(Refused::Unreadable)?;
    if text.len() > MAX_LOCATION {
        return Err(Refused::TooLong);
    }
    let to = from.join(text).map_err(|_| Refused::Unreadable)?;
    if to.host_str().unwrap_or_default().len() > MAX_HOST {
        return Err(Refused::TooLong);
    }
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err(Refused::Downgrade),
        _ => return Err(Refused::Scheme),
    }
    // The client would make an Authorization header of it.
    if !to.username().is_empty() || to.password().is_some() {
        return Err(Refused::UserInfo);
    }
    Ok(to)
}

/// Turns a request into the one that a redirect to `to` asks for: without Authorization, which is for the next place to
/// ask for, and with the Referer of Go's net/http, some storages want it. Its query is left out, as it may be a
/// signature.
pub(in crate::upstream) fn advance(hop: &mut HttpRequest, to: Url) {
    hop.headers.remove(AUTHORIZATION);
    // A URL is printable ASCII.
    if let Ok(referer) = HeaderValue::try_from(String::from(bare(&hop.url))) {
        hop.headers.insert(REFERER, referer);
    }
    hop.url = to;
}

/// Returns the repository that a URL of a registry's API names (distribution-spec, "Endpoints"); `None` for URLs that
/// are of no registry, such as a storage's.
pub(in crate::upstream) fn repository(url: &Url) -> Option<&str> {
    let (_, path) = url.path().split_once("/v2/")?;
    let mut parts = path.rsplitn(3, '/');
    let (_reference, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
    let known = matches!(kind, "manifests" | "blobs" | "tags" | "referrers");
    (known && !name.is_empty()).then_some(name)
}

/// Returns `true` for a URL of the API of a registry.
pub(in crate::upstream) fn is_api(url: &Url) -> bool {
    let path = url.path();
    path.ends_with("/v2/") || path.ends_with("/v2") || repository(url).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::transport::budget::RequestBudget;
    use proptest::prelude::*;
    use test_case::test_case;

    /// The target of a redirect from an HTTPS upstream.
    #[test_case("https://cdn.example/x?sig=1" => Ok("https://cdn.example/x?sig=1".to_owned()); "another host")]
    #[test_case("/moved" => Ok("https://r.example/moved".to_owned()); "relative")]
    #[test_case("//cdn.example/x" => Ok("https://cdn.example/x".to_owned()); "without a scheme")]
    #[test_case("https://cdn.example/Z\u{fc}rich x" => Ok("https://cdn.example/Z%C3%BCrich%20x".to_owned()); "not encoded")]
    #[test_case("http://cdn.example/x" => Err(Refused::Downgrade); "clear text")]
    #[test_case("file:///etc/passwd" => Err(Refused::Scheme); "a file")]
    #[test_case("https://user:pw@cdn.example/x" => Err(Refused::UserInfo); "a user")]
    #[test_case("https://" => Err(Refused::Unreadable); "no host")]
    fn redirect_from_https_upstream(location: &str) -> Result<String, Refused> {
        let from = "https://r.example/v2/a/blobs/b".parse().unwrap();
        target(&from, &to(location)).map(String::from)
    }

    fn to(location: &str) -> HeaderMap {
        HeaderMap::from_iter([(LOCATION, HeaderValue::from_bytes(location.as_bytes()).unwrap())])
    }

    /// The repository that a URL names.
    #[test_case("https://r.example/v2/library/app/manifests/v1" => Some("library/app".to_owned()); "a manifest")]
    #[test_case("https://r.example/v2/app/blobs/sha256:00" => Some("app".to_owned()); "a blob")]
    #[test_case("https://r.example/sub/v2/a/v2/b/tags/list?n=1" => Some("a/v2/b".to_owned()); "tags below a path")]
    #[test_case("https://r.example/v2/a/referrers/sha256:00" => Some("a".to_owned()); "referrers")]
    #[test_case("https://r.example/v2/" => None; "the base")]
    #[test_case("https://cdn.example/registry-v2/docker/registry/v2/blobs/sha256/00/0011/data" => None; "Docker Hub's storage")]
    #[test_case("https://cdn.example/sha256:00" => None; "a storage")]
    fn repository_of_url(url: &str) -> Option<String> {
        repository(&url.parse().unwrap()).map(str::to_owned)
    }

    /// The server keeps hosts that a redirect names, with what they ask for.
    #[test]
    fn long_location_or_host_is_refused() {
        let from = "https://r.example/".parse().unwrap();
        let go = |location: String| target(&from, &to(&location)).map(drop);
        assert_eq!(go(format!("https://cdn.example/?{}", "x".repeat(8000))), Ok(()));
        let long = format!("https://cdn.example/?{}", "x".repeat(MAX_LOCATION));
        assert_eq!(go(long), Err(Refused::TooLong));
        let host = "abcdefghi.".repeat(26);
        assert_eq!(go(format!("https://{host}example/")), Err(Refused::TooLong));
    }

    /// A redirected request has a `Referer` without secrets, and no credentials.
    #[test]
    fn redirected_request_has_clean_referer() {
        let from = "https://jane:secret@r.example/v2/a/blobs/b?sig=secret#secret";
        let mut hop = HttpRequest::get(
            crate::upstream::RequestClass::Blob,
            from.parse().unwrap(),
            RequestBudget::new(),
        );
        hop.headers
            .insert(AUTHORIZATION, HeaderValue::from_static("Basic secret"));
        advance(&mut hop, "https://cdn.example/x?sig=1".parse().unwrap());
        let wanted = HeaderMap::from_iter([(
            REFERER,
            HeaderValue::from_static("https://r.example/v2/a/blobs/b"),
        )]);
        assert_eq!(hop.headers, wanted);
        assert_eq!(hop.url.as_str(), "https://cdn.example/x?sig=1");
    }

    /// A plain HTTP upstream may redirect to plain HTTP; a redirect without a location is refused.
    #[test]
    fn http_may_redirect_to_http() {
        let from = "http://r.example/".parse().unwrap();
        assert!(target(&from, &to("http://other.example/")).is_ok());
        assert_eq!(target(&from, &HeaderMap::new()), Err(Refused::Unreadable));
    }

    proptest! {
        /// No location redirects from HTTPS to a different scheme.
        #[test]
        fn https_never_redirects_to_other_schemes(location in "[ -~]{0,60}") {
            let from = "https://r.example/v2/".parse().unwrap();
            if let Ok(to) = target(&from, &to(&location)) {
                prop_assert_eq!(to.scheme(), "https");
            }
        }
    }
}
