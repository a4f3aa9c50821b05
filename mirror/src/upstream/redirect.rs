//! Where a redirect leads, if it may be followed.

use http::{HeaderValue, StatusCode};
use url::Url;

/// More hops than any registry needs.
pub(super) const MOST_HOPS: usize = 8;

/// Why a redirect is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("a redirect without a readable Location")]
    Unreadable,
    #[error("a redirect from https to http")]
    Downgrade,
    #[error("a redirect to something else than http or https")]
    Scheme,
    #[error("a redirect with a user in its URL")]
    UserInfo,
}

/// Whether the status asks to go elsewhere with the same request.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The URL that an answer from `from` leads to.
pub(super) fn target(from: &Url, location: Option<&HeaderValue>) -> Result<Url, Refused> {
    let text = location
        .and_then(|value| value.to_str().ok())
        .ok_or(Refused::Unreadable)?;
    let to = from.join(text).map_err(|_| Refused::Unreadable)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("https://cdn.example/x?sig=1" => Ok("https://cdn.example/x?sig=1".to_owned()); "another host")]
    #[test_case("/moved" => Ok("https://r.example/moved".to_owned()); "relative")]
    #[test_case("//cdn.example/x" => Ok("https://cdn.example/x".to_owned()); "without a scheme")]
    #[test_case("http://cdn.example/x" => Err(Refused::Downgrade); "clear text")]
    #[test_case("file:///etc/passwd" => Err(Refused::Scheme); "a file")]
    #[test_case("https://user:pw@cdn.example/x" => Err(Refused::UserInfo); "a user")]
    #[test_case("https://" => Err(Refused::Unreadable); "no host")]
    fn from_an_encrypted_upstream(location: &str) -> Result<String, Refused> {
        let from = "https://r.example/v2/a/blobs/b".parse().unwrap();
        target(&from, Some(&location.parse().unwrap())).map(String::from)
    }

    #[test]
    fn clear_text_may_lead_to_clear_text_and_nothing_leads_nowhere() {
        let from = "http://r.example/".parse().unwrap();
        assert!(target(&from, Some(&HeaderValue::from_static("http://other.example/"))).is_ok());
        assert_eq!(target(&from, None), Err(Refused::Unreadable));
    }

    proptest! {
        #[test]
        fn no_location_leads_from_https_to_anything_else(location in "[ -~]{0,60}") {
            let from = "https://r.example/v2/".parse().unwrap();
            if let Ok(to) = target(&from, Some(&location.parse().unwrap())) {
                prop_assert_eq!(to.scheme(), "https");
            }
        }
    }
}
