//! What an upstream's 401 asks for (RFC 9110, 11.6.1; distribution's token authentication).

use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
use http_auth::{ChallengeParser, ChallengeRef};
use url::Url;

/// The best of the challenges that we can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token of a token server.
    Bearer(Bearer),
    /// The credentials themselves.
    Basic,
}

/// Where a token is to be had.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bearer {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

impl Challenge {
    /// Reads all challenges of all headers; Bearer goes before Basic, unknown schemes are skipped.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let mut basic = false;
        for header in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(text) {
            // Whatever follows a malformed challenge can't be told from its parameters.
            for challenge in ChallengeParser::new(header).map_while(Result::ok) {
                if let Some(bearer) = Bearer::read(&challenge) {
                    return Some(Self::Bearer(bearer));
                }
                basic |= challenge.scheme.eq_ignore_ascii_case("Basic");
            }
        }
        basic.then_some(Self::Basic)
    }
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

impl Bearer {
    fn read(challenge: &ChallengeRef<'_>) -> Option<Self> {
        if !challenge.scheme.eq_ignore_ascii_case("Bearer") {
            return None;
        }
        let parameter = |name: &str| {
            let found = challenge
                .params
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name));
            found
                .map(|(_, value)| value.to_unescaped())
                .filter(|value| !value.is_empty())
        };
        let realm: Url = parameter("realm")?.parse().ok()?;
        let plain = realm.username().is_empty() && realm.password().is_none();
        (matches!(realm.scheme(), "http" | "https") && plain).then(|| Self {
            realm,
            service: parameter("service"),
            scope: parameter("scope"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::read(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: realm.parse().unwrap(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn docker_hubs_challenge_is_read_whole() {
        let value = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#;
        let scope = Some("repository:library/nginx:pull");
        assert_eq!(
            read(&[value]),
            Some(bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                scope
            ))
        );
    }

    #[test]
    fn a_comma_in_a_scope_ends_no_parameter() {
        let value = r#"bearer REALM="https://a.example/t", scope="repository:a:pull,push""#;
        assert_eq!(
            read(&[value]),
            Some(bearer(
                "https://a.example/t",
                None,
                Some("repository:a:pull,push")
            ))
        );
    }

    #[test]
    fn bearer_is_found_behind_others_in_one_header_and_in_several() {
        let wanted = Some(bearer("https://a.example/t", None, None));
        assert_eq!(
            read(&[r#"Basic realm="x", Bearer realm="https://a.example/t""#]),
            wanted
        );
        assert_eq!(
            read(&[
                "Negotiate",
                r#"Basic realm="x""#,
                r#"Bearer realm="https://a.example/t""#
            ]),
            wanted
        );
    }

    #[test]
    fn basic_is_taken_where_bearer_cannot_be_answered() {
        assert_eq!(read(&[r#"Basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(read(&["Bearer", "Basic"]), Some(Challenge::Basic));
        assert_eq!(
            read(&[r#"Bearer realm="ftp://a.example""#, "basic"]),
            Some(Challenge::Basic)
        );
        assert_eq!(
            read(&[r#"Bearer realm="https://u:p@a.example/t""#, "basic"]),
            Some(Challenge::Basic)
        );
    }

    #[test]
    fn unknown_schemes_and_none_at_all_are_no_challenge() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[r#"Digest realm="x", qop="auth""#]), None);
        assert_eq!(read(&[r#"Bearer realm="not a url""#]), None);
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(value in "[ -~\t]{0,200}") {
            let _ = read(&[&value]);
        }
    }
}
