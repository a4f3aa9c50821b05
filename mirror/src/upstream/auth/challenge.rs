//! Challenges of a 401 (RFC 9110, 11.6.1; distribution, "Token Authentication Specification").

use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
use url::Url;

use super::challenge_parser::{self, RawChallenge};

/// The most bytes of a challenge, and so of each of its parameters; those of Docker Hub have about 150.
pub(crate) const MAX_CHALLENGE: usize = 2 * 1024;
/// The most bytes of a header line with challenges, and the most lines, that are read.
const MAX_LINE: usize = 8 * 1024;
const MAX_LINES: usize = 16;

/// The best of the supported challenges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Challenge {
    /// A token of a token server.
    Bearer(Bearer),
    /// The credentials themselves.
    Basic,
}

/// The token server, and the scope of the token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::upstream) struct Bearer {
    pub(in crate::upstream) realm: Url,
    pub(in crate::upstream) service: Option<String>,
    pub(in crate::upstream) scope: Option<String>,
}

impl Challenge {
    /// Reads the challenges of all headers; prefers Bearer to Basic, and skips unknown schemes.
    pub(in crate::upstream) fn read(headers: &HeaderMap) -> Option<Self> {
        let mut basic = false;
        let lines = headers.get_all(WWW_AUTHENTICATE).iter().take(MAX_LINES);
        let lines = lines.map(HeaderValue::as_bytes);
        for line in lines.filter(|line| line.len() <= MAX_LINE) {
            let challenges = challenge_parser::parse_challenges(line).into_iter();
            for raw in challenges.filter(|raw| raw.size() <= MAX_CHALLENGE) {
                if let Some(bearer) = Bearer::read(&raw) {
                    return Some(Self::Bearer(bearer));
                }
                basic |= raw.scheme.eq_ignore_ascii_case("Basic");
            }
        }
        basic.then_some(Self::Basic)
    }
}

impl Bearer {
    fn read(raw: &RawChallenge) -> Option<Self> {
        if !raw.scheme.eq_ignore_ascii_case("Bearer") {
            return None;
        }
        let parameter = |name: &str| {
            let mut parameters = raw.parameters.iter();
            let found = parameters.find(|(key, _)| key.eq_ignore_ascii_case(name));
            found
                .map(|(_, value)| value.clone())
                .filter(|value| !value.is_empty())
        };
        let realm: Url = parameter("realm")?.parse().ok()?;
        let plain = realm.username().is_empty() && realm.password().is_none();
        let bearer = Self {
            realm,
            service: parameter("service"),
            scope: parameter("scope"),
        };
        let is_usable = matches!(bearer.realm.scheme(), "http" | "https") && plain;
        // A URL may be longer than its text: the parser encodes what is not ASCII.
        (is_usable && bearer.size() <= MAX_CHALLENGE).then_some(bearer)
    }

    /// Returns the bytes that its parameters take.
    pub(in crate::upstream) fn size(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.realm.as_str().len() + length(&self.service) + length(&self.scope)
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

    fn read_bytes(value: &[u8]) -> Option<Challenge> {
        let value = HeaderValue::from_bytes(value).unwrap();
        Challenge::read(&HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]))
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

    /// A comma inside a scope does not end the parameter.
    #[test]
    fn comma_in_scope_ends_no_parameter() {
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

    /// The parser finds a Bearer challenge after others, in one header or in several.
    #[test]
    fn bearer_is_found_after_other_challenges() {
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

    /// The parser accepts every form of a challenge that the grammar allows.
    #[test]
    fn valid_challenges_are_all_parsed() {
        let (service, scope) = (Some("registry.example"), Some("repository:a:pull"));
        let (plain, whole) = (
            Some(bearer("https://a.example/t", service, None)),
            Some(bearer("https://a.example/t", service, scope)),
        );
        let realm = r#"realm="https://a.example/t""#;
        assert_eq!(
            read(&[&format!("Bearer {realm},service=registry.example")]),
            plain
        );
        assert_eq!(
            read(&[&format!("Bearer service = registry.example , {realm}")]),
            plain
        );
        assert_eq!(
            read(&[&format!(
                "BEARER   {realm},,\tservice=\"registry\\.example\", scope=\"repository:a:pull\","
            )]),
            whole
        );
        assert_eq!(
            read(&[&format!(
                "Negotiate YWJj/+A==, {realm}, NTLM , Bearer {realm}, service=registry.example, Basic"
            )]),
            plain
        );
        let abroad = format!("Basic realm=\"Zürich, Bearer\", Bearer {realm}, service=registry.example");
        assert_eq!(read_bytes(abroad.as_bytes()), plain);
    }

    /// The part of a challenge that comes ahead of a mistake counts, as it does for clients.
    #[test]
    fn challenge_up_to_a_mistake_counts() {
        let wanted = Some(bearer("https://a.example/t", None, None));
        for mistake in [
            ";service=x",
            r#",service="x"#,
            ",service=",
            ",=x",
            r#""", x=y"#,
            " service=x",
        ] {
            let value = format!(r#"Bearer realm="https://a.example/t"{mistake}"#);
            assert_eq!(read(&[&value]), wanted, "{value}");
        }
        // A bare address is no token.
        assert_eq!(read(&["Bearer realm=https://a.example/t"]), None);
    }

    /// A Basic challenge is used if no Bearer challenge can be answered.
    #[test]
    fn basic_is_used_if_bearer_is_unusable() {
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

    /// Whatever parameter holds the bytes, and also where the challenge is one of several.
    #[test]
    fn challenge_above_2_kib_is_skipped() {
        let realm = r#"realm="https://a.example/t""#;
        let with = |name: &str, length: usize| format!("Bearer {realm},{name}=\"{}\"", "x".repeat(length));
        assert!(read(&[&with("service", 1900)]).is_some());
        for name in ["service", "scope", "error_description"] {
            assert_eq!(read(&[&with(name, MAX_CHALLENGE)]), None, "{name}");
            let basic = format!("{}, Basic realm=\"x\"", with(name, MAX_CHALLENGE));
            assert_eq!(read(&[&basic]), Some(Challenge::Basic), "{name}");
        }
        let path = "x".repeat(MAX_CHALLENGE);
        assert_eq!(
            read(&[&format!("Bearer realm=\"https://a.example/{path}\"")]),
            None
        );
        let many = format!("Bearer {realm}{}", r#",x="y""#.repeat(1200));
        assert_eq!(read(&[&many]), None);
        // Three bytes each once they are encoded.
        let encoded = format!("Bearer realm=\"https://a.example/{}\"", "\u{fc}".repeat(500));
        assert_eq!(read_bytes(encoded.as_bytes()), None);
    }

    #[test]
    fn long_and_many_header_lines_are_skipped() {
        let bearer = r#"Bearer realm="https://a.example/t""#;
        let long = format!("Negotiate {}", "x".repeat(MAX_LINE));
        assert!(read(&[&long, bearer]).is_some());
        assert_eq!(read(&[&format!("{long}, {bearer}")]), None);
        assert_eq!(read(&[&["Negotiate"; MAX_LINES][..], &[bearer]].concat()), None);
    }

    /// Unknown schemes, or no header at all, are no challenge.
    #[test]
    fn unknown_schemes_are_no_challenge() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[r#"Digest realm="x", qop="auth""#]), None);
        assert_eq!(read(&[r#"Bearer realm="not a url""#]), None);
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(value in "[ -~\t]{0,200}") {
            let _ = read(&[&value]);
        }

        /// No text in the form of a challenge makes the parser panic.
        #[test]
        fn any_challenge_text_does_not_panic(value in r#"(Bearer|Basic|[a=,; "\\]|realm="){0,30}"#) {
            let _ = read(&[&value]);
        }
    }
}
