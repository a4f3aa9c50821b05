//! The endpoints: one total parser from a request's path (distribution-spec, "Endpoints").

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::metrics::Kind;

/// An endpoint with its raw parts; the endpoint validates names and references, with an error for each.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/`
    Root,
    /// `/v2/` (end-1)
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/manifests/<reference>` (end-3)
    Manifest {
        /// The repository, as the path has it.
        name: Cow<'a, str>,
        /// A tag or a digest.
        reference: Cow<'a, str>,
    },
    /// `/v2/<name>/blobs/<digest>` (end-2)
    Blob {
        /// The repository, as the path has it.
        name: Cow<'a, str>,
        /// The blob.
        digest: Cow<'a, str>,
    },
    /// `/v2/<name>/tags/list` (end-8a)
    Tags {
        /// The repository, as the path has it.
        name: Cow<'a, str>,
    },
    /// `/v2/<name>/referrers/<digest>` (end-12a)
    Referrers {
        /// The repository, as the path has it.
        name: Cow<'a, str>,
        /// The subject of the referrers.
        digest: Cow<'a, str>,
    },
    /// `/v2/<name>/blobs/uploads/…`: a push.
    Upload,
    /// Anything else.
    Unknown,
}

impl<'a> Route<'a> {
    /// Returns the endpoint of a path. `prefix` is `http.prefix`, with a slash at its start and none at its end.
    pub fn parse(path: &'a str, prefix: &str) -> Self {
        if path == "/" {
            return Self::Root; // load balancers probe it, regardless of the prefix
        }
        let decoded = if path.contains('%') {
            percent_decode_str(path).decode_utf8()
        } else {
            Ok(Cow::Borrowed(path))
        };
        match decoded {
            Ok(Cow::Borrowed(path)) => path.strip_prefix(prefix).map_or(Self::Unknown, parse_decoded),
            Ok(Cow::Owned(path)) => path
                .strip_prefix(prefix)
                .map_or(Self::Unknown, parse_decoded)
                .owned(),
            Err(_) => Self::Unknown,
        }
    }

    fn owned<'b>(self) -> Route<'b> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        match self {
            Route::Root => Route::Root,
            Route::Base => Route::Base,
            Route::Catalog => Route::Catalog,
            Route::Upload => Route::Upload,
            Route::Unknown => Route::Unknown,
            Route::Manifest { name, reference } => Route::Manifest {
                name: own(name),
                reference: own(reference),
            },
            Route::Blob { name, digest } => Route::Blob {
                name: own(name),
                digest: own(digest),
            },
            Route::Tags { name } => Route::Tags { name: own(name) },
            Route::Referrers { name, digest } => Route::Referrers {
                name: own(name),
                digest: own(digest),
            },
        }
    }

    /// Returns the name of the endpoint in traces, from a small set.
    pub(crate) fn template(&self) -> Option<&'static str> {
        match self {
            Self::Root => Some("/"),
            Self::Base => Some("/v2/"),
            Self::Catalog => Some("/v2/_catalog"),
            Self::Manifest { .. } => Some("/v2/{name}/manifests/{reference}"),
            Self::Blob { .. } => Some("/v2/{name}/blobs/{digest}"),
            Self::Tags { .. } => Some("/v2/{name}/tags/list"),
            Self::Referrers { .. } => Some("/v2/{name}/referrers/{digest}"),
            Self::Upload => Some("/v2/{name}/blobs/uploads/"),
            Self::Unknown => None,
        }
    }

    /// Returns the repository and the tag or digest that a request names, as the path has them.
    pub(super) fn subject(&self) -> (Option<&str>, Option<&str>) {
        match self {
            Self::Manifest { name, reference } => (Some(name), Some(reference)),
            Self::Blob { name, digest } | Self::Referrers { name, digest } => (Some(name), Some(digest)),
            Self::Tags { name } => (Some(name), None),
            Self::Root | Self::Base | Self::Catalog | Self::Upload | Self::Unknown => (None, None),
        }
    }

    /// Returns the name of the endpoint in metrics and logs.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Root | Self::Base => Kind::Base,
            Self::Catalog => Kind::Catalog,
            Self::Manifest { .. } => Kind::Manifest,
            Self::Blob { .. } => Kind::Blob,
            Self::Tags { .. } => Kind::Tags,
            Self::Referrers { .. } => Kind::Referrers,
            Self::Upload | Self::Unknown => Kind::Other,
        }
    }
}

/// Returns the path that a client is redirected to, as Distribution does: without empty and dot segments, or without
/// the slash behind an endpoint; `None` where the path is clean.
///
/// A slash that is percent-encoded separates nothing. The result begins with one slash and has no backslash, which
/// browsers take for a slash: so it never redirects to another host.
pub(super) fn clean(path: &str, prefix: &str) -> Option<String> {
    if !path.starts_with('/') {
        return None;
    }
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => _ = segments.pop(),
            segment => segments.push(segment),
        }
    }
    let mut clean = format!("/{}", segments.join("/"));
    if path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    if clean == path {
        let endpoint = path.strip_suffix('/')?;
        let leads_on =
            Route::parse(path, prefix) == Route::Unknown && Route::parse(endpoint, prefix) != Route::Unknown;
        clean = leads_on.then(|| endpoint.to_owned())?;
    }
    Some(clean.replace('\\', "%5C"))
}

/// Parses a path from its end, because names may contain the keywords (`a/blobs/b`).
fn parse_decoded(path: &str) -> Route<'_> {
    let rest = match path {
        "" | "/" => return Route::Root,
        "/v2" | "/v2/" => return Route::Base,
        "/v2/_catalog" => return Route::Catalog,
        _ => match path.strip_prefix("/v2/") {
            Some(rest) => rest,
            None => return Route::Unknown,
        },
    };
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Route::Tags { name: name.into() };
    }
    let Some((before, last)) = rest.rsplit_once('/') else {
        return Route::Unknown;
    };
    let Some((name, keyword)) = before.rsplit_once('/') else {
        return Route::Unknown;
    };
    if keyword == "uploads" && name.ends_with("/blobs") {
        return Route::Upload;
    }
    let (name, last) = (name.into(), last.into());
    match keyword {
        "manifests" => Route::Manifest {
            name,
            reference: last,
        },
        "blobs" => Route::Blob { name, digest: last },
        "referrers" => Route::Referrers { name, digest: last },
        _ => Route::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("/", &Route::Root)]
    #[test_case("/v2", &Route::Base; "base without a slash")]
    #[test_case("/v2/", &Route::Base)]
    #[test_case("/v2/_catalog", &Route::Catalog)]
    #[test_case("/v2/a/b/manifests/latest", &Route::Manifest { name: "a/b".into(), reference: "latest".into() })]
    #[test_case("/v2/a/blobs/blobs/sha256:0", &Route::Blob { name: "a/blobs".into(), digest: "sha256:0".into() }; "the last keyword wins")]
    #[test_case("/v2/a/blobs/sha256%3A0", &Route::Blob { name: "a".into(), digest: "sha256:0".into() }; "percent-encoded")]
    #[test_case("/v2/a/blobs/sha256%253A0", &Route::Blob { name: "a".into(), digest: "sha256%3A0".into() }; "decoded once only")]
    #[test_case("/v2/tags/list/tags/list", &Route::Tags { name: "tags/list".into() })]
    #[test_case("/v2/a/referrers/sha256:0", &Route::Referrers { name: "a".into(), digest: "sha256:0".into() })]
    #[test_case("/v2/a/blobs/uploads/", &Route::Upload)]
    #[test_case("/v2/a/blobs/uploads/b/manifests/x", &Route::Manifest { name: "a/blobs/uploads/b".into(), reference: "x".into() }; "a name with uploads in it")]
    #[test_case("/v2/manifests/latest", &Route::Unknown; "no name")]
    #[test_case("/v1/a/manifests/latest", &Route::Unknown; "another version")]
    #[test_case("/v2/%ff/manifests/x", &Route::Unknown; "not UTF-8")]
    fn parses(path: &str, expected: &Route<'_>) {
        assert_eq!(Route::parse(path, ""), *expected);
    }

    /// The router requires the configured prefix and removes it.
    #[test]
    fn route_prefix_is_required_and_removed() {
        assert_eq!(Route::parse("/cache/v2/", "/cache"), Route::Base);
        assert_eq!(Route::parse("/v2/", "/cache"), Route::Unknown);
        assert_eq!(Route::parse("/", "/cache"), Route::Root);
    }

    #[test_case("//v2/", Some("/v2/"))]
    #[test_case("/v2//a/manifests/1", Some("/v2/a/manifests/1"))]
    #[test_case("/v2/a/manifests//1", Some("/v2/a/manifests/1"))]
    #[test_case("/v2/./a/../b/tags/list", Some("/v2/b/tags/list"); "dot segments")]
    #[test_case("/../..//v2/", Some("/v2/"); "above the root")]
    #[test_case("//", Some("/"))]
    #[test_case("//evil.example/v2/", Some("/evil.example/v2/"); "no other host")]
    #[test_case("//\\evil.example/v2/", Some("/%5Cevil.example/v2/"); "no other host for browsers")]
    #[test_case("/v2//a%20b/tags/list", Some("/v2/a%20b/tags/list"); "encoded as it was")]
    #[test_case("/v2/a%2F%2Fb/tags/list", None; "an encoded slash")]
    #[test_case("/v2/a/tags/list/", Some("/v2/a/tags/list"); "a slash behind an endpoint")]
    #[test_case("/v2/a/manifests/1/", Some("/v2/a/manifests/1"); "a slash behind a reference")]
    #[test_case("/v2/a/blobs/uploads/", None; "an endpoint that ends with a slash")]
    #[test_case("/v2/", None)]
    #[test_case("/", None)]
    #[test_case("/nothing/", None; "no endpoint")]
    #[test_case("*", None)]
    fn unclean_path_redirects_to_clean_one(path: &str, expected: Option<&str>) {
        assert_eq!(clean(path, "").as_deref(), expected);
    }

    #[test]
    fn clean_path_keeps_the_prefix() {
        assert_eq!(clean("//cache//v2/", "/cache").as_deref(), Some("/cache/v2/"));
        assert_eq!(
            clean("/cache/v2/a/tags/list/", "/cache").as_deref(),
            Some("/cache/v2/a/tags/list")
        );
    }

    proptest! {
        /// A clean path stays as it is and cannot lead to a different host.
        #[test]
        fn clean_path_is_idempotent_and_local(path in "[/.a%\\\\-]{0,20}") {
            if let Some(found) = clean(&path, "") {
                prop_assert!(found.starts_with('/') && !found.starts_with("//") && !found.contains('\\'), "{}", found);
                prop_assert_eq!(clean(&found, ""), None);
            }
        }

        #[test]
        fn every_path_has_a_route(path in "\\PC*") {
            let _ = Route::parse(&path, "");
        }

        /// Every valid name and tag come back from their path.
        #[test]
        fn valid_name_and_tag_round_trip(name in "[a-z0-9]{1,9}(/(tags|list|blobs|manifests|[a-z0-9]{1,9})){0,4}", tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}") {
            let path = format!("/v2/{name}/manifests/{tag}");
            prop_assert_eq!(Route::parse(&path, ""), Route::Manifest { name: name.into(), reference: tag.into() });
        }
    }
}
