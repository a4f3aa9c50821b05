//! Masks secrets in text that leaves the cluster.

use std::sync::LazyLock;

use regex::Regex;

/// The text in place of a secret.
const MASK: &str = "***";

/// The places of secrets in text: user and password of a URL, an Authorization header, values of names that mean a
/// secret, signatures of URLs, PEM blocks of keys, JSON Web Tokens.
static SECRETS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", MASK),
        (r"(://)[^/\s@'\x22]+@", "${1}***@"),
        (r"(?i)\b(basic|bearer)(\s+)[A-Za-z0-9+/=._~-]{6,}", "${1}${2}***"),
        (r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", MASK),
        (
            r"(?i)([\w.-]*(?:password|passwd|secret[-_]?(?:access[-_]?)?key|token|api[-_]?key|signature|credential)[\w.-]*[\x22']?[ \t]*[=:][ \t]*[\x22']?)([^\s\x22'&,;{}\[\]]+)",
            "${1}***",
        ),
        (r"\$(?:2[aby]?|apr1|6|5)\$[A-Za-z0-9./$]{10,}", MASK),
    ]
    .into_iter()
    // The patterns are constants, compiled by the tests.
    .filter_map(|(pattern, mask)| Some((Regex::new(pattern).ok()?, mask)))
    .collect()
});

/// Returns the text with its secrets masked.
pub(super) fn redact(text: &str) -> String {
    SECRETS.iter().fold(text.to_owned(), |text, (pattern, mask)| {
        pattern.replace_all(&text, *mask).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("https://ann:hunter2@proxy:3128/x" => "https://***@proxy:3128/x"; "a URL")]
    #[test_case("authorization: Bearer abcdef.ghi" => "authorization: Bearer ***"; "a header")]
    #[test_case(r#"{"password": "hunter2", "user": "ann"}"# => r#"{"password": "***", "user": "ann"}"#; "JSON")]
    #[test_case("REGISTRY_PROXY_PASSWORD=hunter2" => "REGISTRY_PROXY_PASSWORD=***"; "a variable")]
    #[test_case("GET /x?X-Amz-Signature=abc123&y=1" => "GET /x?X-Amz-Signature=***&y=1"; "a signed URL")]
    #[test_case("ann:$2y$10$abcdefghijklmnopqrstuv" => "ann:***"; "a password hash")]
    #[test_case("-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\nx" => "***\nx"; "a key")]
    #[test_case("credentialsSecretRef:\n  name: quay" => "credentialsSecretRef:\n  name: quay"; "the name of a Secret")]
    #[test_case("a line about quay.io/app:1 at 10.0.0.1" => "a line about quay.io/app:1 at 10.0.0.1"; "no secret")]
    fn secrets_are_masked(text: &str) -> String {
        redact(text)
    }

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(SECRETS.len(), 6);
    }
}
