//! One name for each registry, however people write it.

use std::str::FromStr;

use crate::name::{Host, InvalidName};

const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_ALIASES: [&str; 3] = [
    "index.docker.io",
    "registry-1.docker.io",
    "registry.hub.docker.com",
];

/// The name in lower case, and `docker.io` for all of Docker Hub's.
///
/// # Errors
/// What is no name of a registry.
pub fn canonical(text: &str) -> Result<Host, InvalidName> {
    let lower = text.to_ascii_lowercase();
    let bare = lower.strip_suffix(":443").unwrap_or(&lower);
    let name = if DOCKER_HUB_ALIASES.contains(&bare) {
        DOCKER_HUB
    } else {
        &lower
    };
    Host::from_str(name)
}

/// Where a registry is asked if nothing else is said.
pub fn default_remote(host: &Host) -> String {
    match host.as_str() {
        DOCKER_HUB => "https://registry-1.docker.io".to_owned(),
        host => format!("https://{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("docker.io" => "docker.io")]
    #[test_case("index.docker.io" => "docker.io")]
    #[test_case("Registry-1.Docker.IO" => "docker.io")]
    #[test_case("registry-1.docker.io:443" => "docker.io")]
    #[test_case("registry.example:5000" => "registry.example:5000")]
    #[test_case("QUAY.io" => "quay.io")]
    fn names_become_one(text: &str) -> String {
        canonical(text).unwrap().to_string()
    }

    #[test]
    fn docker_hub_is_asked_at_its_registry() {
        let remote = |name: &str| default_remote(&name.parse().unwrap());
        assert_eq!(remote("docker.io"), "https://registry-1.docker.io");
        assert_eq!(remote("quay.io"), "https://quay.io");
    }
}
