//! Selection of the upstream and the repository of a request.

use crate::config::host;
use crate::name::{Host, Repository, RepositoryName};
use crate::secret::mask_user;

/// Docker Hub as clients name it, whose one-component names mean `library/NAME`.
const DOCKER_HUB: &str = "docker.io";

/// The reason why a request has no repository.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpstreamSelectionError {
    /// `?ns=` names a registry that is not configured.
    #[error("this mirror has no upstream {0:?}: add it to its upstreams, or pull from the registry itself")]
    UnknownHost(String),
    /// The path names one configured registry, `?ns=` another one.
    #[error("the name begins with {prefix} but ?ns= names {ns}: one request can't be for both")]
    ConflictingHosts {
        /// The registry in the path.
        prefix: String,
        /// The registry in the query.
        ns: String,
    },
    /// The settings exclude the repository.
    #[error("{0} is kept out by the include and exclude patterns of this mirror")]
    Excluded(Repository),
    /// The name is malformed.
    #[error("{0:?} is not a repository name: lower-case path components, at most 255 characters in all")]
    InvalidName(String),
}

/// A configured registry: its name, and the scheme of its URL.
pub(crate) type Candidate<'h> = (&'h Host, &'h str);

/// Returns the registry that a client means by `name`: the one of exactly this name, else one that it is an alias of.
pub(crate) fn find<'h>(
    hosts: &(impl Iterator<Item = Candidate<'h>> + Clone),
    name: &str,
) -> Option<&'h Host> {
    let is_exact = |(host, _): &Candidate<'h>| host.as_str().eq_ignore_ascii_case(name);
    let found = hosts.clone().find(is_exact).or_else(|| {
        // The first part of most paths, such as `library`, is neither a domain nor has it a port.
        let is_domain = name.bytes().any(|byte| matches!(byte, b'.' | b':'));
        let is_alias = |(host, scheme): &Candidate<'h>| host::is_name_of(name, host, scheme);
        is_domain.then(|| hosts.clone().find(is_alias)).flatten()
    });
    found.map(|(host, _)| host)
}

/// Chooses among the configured `hosts`, of which the first is the default.
pub(crate) fn select_repository<'h>(
    hosts: &(impl Iterator<Item = Candidate<'h>> + Clone),
    ns: Option<&str>,
    path: &str,
) -> Result<Repository, UpstreamSelectionError> {
    let find = |name: &str| find(hosts, name);
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let prefix = if rest.is_empty() { None } else { find(first) };
    let invalid = || UpstreamSelectionError::InvalidName(shortened(&mask_user(path)));
    let (host, name) = match ns {
        Some(ns) => {
            let host =
                find(ns).ok_or_else(|| UpstreamSelectionError::UnknownHost(shortened(&mask_user(ns))))?;
            match prefix {
                Some(prefix) if prefix == host => (host, rest),
                Some(prefix) => {
                    return Err(UpstreamSelectionError::ConflictingHosts {
                        prefix: prefix.to_string(),
                        ns: host.to_string(),
                    });
                }
                None => (host, path),
            }
        }
        None => match prefix {
            Some(host) => (host, rest),
            None => (hosts.clone().next().ok_or_else(invalid)?.0, path),
        },
    };
    let library = host.as_str() == DOCKER_HUB && !name.contains('/');
    let name: Result<RepositoryName, _> = if library {
        format!("library/{name}").parse()
    } else {
        name.parse()
    };
    Ok(Repository {
        host: host.clone(),
        name: name.map_err(|_| invalid())?,
    })
}

/// Truncates a text of a client for a message.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn hosts() -> Vec<Host> {
        ["docker.io", "quay.io", "registry.test:5000", "plain.test"]
            .map(|host| host.parse().unwrap())
            .to_vec()
    }

    fn chosen(ns: Option<&str>, path: &str) -> Result<Repository, UpstreamSelectionError> {
        let (hosts, scheme) = (hosts(), |host: &Host| {
            if host.as_str() == "plain.test" {
                "http"
            } else {
                "https"
            }
        });
        select_repository(&hosts.iter().map(|host| (host, scheme(host))), ns, path)
    }

    #[test_case(None, "nginx", "docker.io/library/nginx"; "the default upstream, library added")]
    #[test_case(None, "org/app", "docker.io/org/app"; "the default upstream")]
    #[test_case(None, "quay.io/org/app", "quay.io/org/app"; "by path prefix")]
    #[test_case(None, "docker.io/nginx", "docker.io/library/nginx"; "by the default's own prefix")]
    #[test_case(None, "quay.io", "docker.io/library/quay.io"; "a prefix alone is a name")]
    #[test_case(Some("quay.io"), "org/app", "quay.io/org/app"; "by ns")]
    #[test_case(Some("quay.io"), "app", "quay.io/app"; "library is for Docker Hub only")]
    #[test_case(Some("quay.io"), "quay.io/org/app", "quay.io/org/app"; "ns repeated in the path is removed")]
    #[test_case(Some("quay.io"), "quay.io/quay.io/app", "quay.io/quay.io/app"; "but once only")]
    #[test_case(Some("registry.test:5000"), "a", "registry.test:5000/a"; "ns with a port")]
    #[test_case(Some("index.docker.io"), "app", "docker.io/library/app"; "an alias of Docker Hub by ns")]
    #[test_case(Some("quay.io:443"), "app", "quay.io/app"; "ns with the default port")]
    #[test_case(Some("docker.io"), "registry-1.docker.io/app", "docker.io/library/app"; "an alias in the path, too")]
    #[test_case(None, "QUAY.io:443/org/app", "quay.io/org/app"; "the default port in the path")]
    #[test_case(Some("plain.test:80"), "a", "plain.test/a"; "the default port of http")]
    fn chooses(ns: Option<&str>, path: &str, expected: &str) {
        assert_eq!(chosen(ns, path).unwrap().to_string(), expected);
    }

    /// A request that names no upstream, two upstreams or an invalid repository is refused.
    #[test]
    fn unknown_upstream_is_refused() {
        let refused = |ns, path| chosen(ns, path).unwrap_err();
        assert_eq!(
            refused(Some("gcr.io"), "a"),
            UpstreamSelectionError::UnknownHost("gcr.io".into())
        );
        assert!(matches!(
            refused(Some("quay.io"), "docker.io/library/a"),
            UpstreamSelectionError::ConflictingHosts { .. }
        ));
        assert!(matches!(
            refused(None, "UPPER"),
            UpstreamSelectionError::InvalidName(_)
        ));
        assert!(matches!(
            refused(None, ""),
            UpstreamSelectionError::InvalidName(_)
        ));
        assert!(matches!(
            refused(None, &"a/".repeat(200)),
            UpstreamSelectionError::InvalidName(_)
        ));
    }

    proptest! {
        #[test]
        fn every_choice_is_a_configured_host(ns in proptest::option::of("\\PC{0,20}"), path in "\\PC{0,40}") {
            if let Ok(repository) = chosen(ns.as_deref(), &path) {
                prop_assert!(hosts().contains(&repository.host));
            }
        }
    }
}
