//! One name for each registry, however people write it.

use std::str::FromStr;

use crate::name::{Host, InvalidName};

/// The canonical name of Docker Hub.
pub(super) const DOCKER_HUB: &str = "docker.io";
/// The URL of Docker Hub's registry.
pub(super) const DOCKER_HUB_URL: &str = "https://registry-1.docker.io";
const DOCKER_HUB_ALIASES: [&str; 3] = [
    "index.docker.io",
    "registry-1.docker.io",
    "registry.hub.docker.com",
];

/// Returns the name in lower case, without the default port of HTTPS, and `docker.io` for every name of Docker Hub.
///
/// # Errors
/// [`InvalidName::Host`] for a text that is no name of a registry.
pub fn canonical(text: &str) -> Result<Host, InvalidName> {
    let lower = text.to_ascii_lowercase();
    Host::from_str(main_name(&lower))
}

/// Returns whether a client that writes `text` means `host`, a canonical name of a registry that is asked over `scheme`.
///
/// Clients write names in any case, with or without the default port, and Docker Hub's in several ways.
pub fn is_name_of(text: &str, host: &Host, scheme: &str) -> bool {
    let (name, host) = (main_name(text), host.as_str());
    let (name, host) = match scheme {
        "http" => (without_port(name, ":80"), without_port(host, ":80")),
        _ => (name, host),
    };
    name.eq_ignore_ascii_case(host)
}

/// Returns the name without the default port of HTTPS, and `docker.io` for the aliases of Docker Hub.
fn main_name(text: &str) -> &str {
    let name = without_port(text, ":443");
    let is_hub = DOCKER_HUB_ALIASES
        .iter()
        .any(|alias| alias.eq_ignore_ascii_case(name));
    if is_hub { DOCKER_HUB } else { name }
}

fn without_port<'a>(text: &'a str, port: &str) -> &'a str {
    text.strip_suffix(port).unwrap_or(text)
}

/// Returns the URL of a registry whose configuration names none.
pub fn default_remote(host: &Host) -> String {
    match host.as_str() {
        DOCKER_HUB => DOCKER_HUB_URL.to_owned(),
        host => format!("https://{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    /// All names of Docker Hub become one, and a host is written in one way.
    #[test_case("docker.io" => "docker.io")]
    #[test_case("index.docker.io" => "docker.io")]
    #[test_case("Registry-1.Docker.IO" => "docker.io")]
    #[test_case("registry-1.docker.io:443" => "docker.io")]
    #[test_case("registry.example:5000" => "registry.example:5000")]
    #[test_case("QUAY.io" => "quay.io")]
    #[test_case("quay.io:443" => "quay.io")]
    #[test_case("quay.io:4430" => "quay.io:4430")]
    #[test_case("[2001:db8::1]:443" => "[2001:db8::1]")]
    #[test_case("[2001:db8::443]" => "[2001:db8::443]")]
    #[test_case("registry.example:80" => "registry.example:80"; "asked over https")]
    fn docker_hub_names_are_canonical(text: &str) -> String {
        canonical(text).unwrap().to_string()
    }

    /// A host matches the spellings that clients use for it.
    #[test_case("docker.io", "docker.io", "https" => true)]
    #[test_case("Index.Docker.io", "docker.io", "https" => true)]
    #[test_case("registry-1.docker.io:443", "docker.io", "https" => true)]
    #[test_case("docker.io:443", "docker.io", "http" => true; "a Docker Hub that is asked over http")]
    #[test_case("docker.io:5000", "docker.io", "https" => false; "another port")]
    #[test_case("evil-docker.io", "docker.io", "https" => false; "another name")]
    #[test_case("QUAY.io:443", "quay.io", "https" => true)]
    #[test_case("a.test:80", "a.test", "http" => true; "the default port of http")]
    #[test_case("a.test", "a.test:80", "http" => true; "a host that is configured with it")]
    #[test_case("a.test:80", "a.test", "https" => false; "no default port of https")]
    #[test_case("[::1]:443", "[::1]", "https" => true)]
    #[test_case(":443", "docker.io", "https" => false; "a port alone")]
    fn host_matches_client_spellings(text: &str, host: &str, scheme: &str) -> bool {
        is_name_of(text, &host.parse().unwrap(), scheme)
    }

    /// Docker Hub is requested at registry-1.docker.io, any other host at its own name.
    #[test]
    fn docker_hub_default_remote_is_registry_1() {
        let remote = |name: &str| default_remote(&name.parse().unwrap());
        assert_eq!(remote("docker.io"), "https://registry-1.docker.io");
        assert_eq!(remote("quay.io"), "https://quay.io");
    }
}
