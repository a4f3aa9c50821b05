//! Corrections of likely mistakes in the URL of a registry, for the server's configuration and for specs.

use url::Url;

use super::host::{DOCKER_HUB, DOCKER_HUB_URL, canonical};

/// The names of Docker Hub's websites, which serve no registry.
const HUB_WEBSITES: [&str; 3] = [DOCKER_HUB, "hub.docker.com", "www.docker.com"];
/// Registries at the root of their host: a path in their URL names a repository.
const PUBLIC_REGISTRIES: [&str; 9] = [
    "quay.io",
    "ghcr.io",
    "gcr.io",
    "registry.k8s.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
    "registry.gitlab.com",
    "cgr.dev",
    "nvcr.io",
];
/// The ends of the names of clouds' registries. They are at the root of their host, too, and a path in their URL is the
/// beginning of the names of repositories.
const CLOUD_SUFFIXES: [&str; 3] = [".gcr.io", ".pkg.dev", ".azurecr.io"];

/// Returns the correction of a URL that is most likely not the one of a registry: without a scheme, with the path of the
/// API (`/v2/`), with a repository, or with the name of Docker Hub's website. It contains no user name and no password.
///
/// ```
/// use mirror::config::remote_url::correction;
///
/// let text = correction("https://registry.example.com/v2/").unwrap();
/// assert_eq!(text, "the server adds /v2/ itself: write https://registry.example.com");
/// assert_eq!(correction("https://registry.example.com:5000/cache"), None);
/// ```
pub fn correction(text: &str) -> Option<String> {
    if let Some((_, rest)) = text.split_once("://") {
        let url = Url::parse(text).ok()?;
        return port_in_path(&url, rest).or_else(|| unlikely_part(&url));
    }
    let url = Url::parse(&format!("https://{text}")).ok()?;
    Some(unlikely_part(&url).unwrap_or_else(|| write(&address(&url, url.path()))))
}

fn write(url: &str) -> String {
    format!("write {url}")
}

/// Returns scheme, host and port of a URL with this path.
fn address(url: &Url, path: &str) -> String {
    let (scheme, host) = (url.scheme(), url.host_str().unwrap_or_default());
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{}", path.trim_end_matches('/'))
}

fn port_in_path(url: &Url, rest: &str) -> Option<String> {
    let (_, port) = rest.split_once("/:")?;
    let port: u16 = port.trim_end_matches('/').parse().ok()?;
    let write = write(&format!("{}:{port}", address(url, "")));
    Some(format!("the port follows the host: {write}"))
}

/// Returns the correction of a URL whose host or path is not one of a registry.
fn unlikely_part(url: &Url) -> Option<String> {
    let host = url
        .host_str()
        .filter(|_| matches!(url.scheme(), "http" | "https"))?;
    let is_website = HUB_WEBSITES.contains(&host);
    let is_hub = is_website || canonical(host).is_ok_and(|name| name.as_str() == DOCKER_HUB);
    let is_cloud = host.contains(".dkr.ecr.") || CLOUD_SUFFIXES.iter().any(|end| host.ends_with(end));
    let is_public = is_hub || PUBLIC_REGISTRIES.contains(&host);
    let path = url.path().trim_matches('/');
    let root = write(&if is_hub {
        DOCKER_HUB_URL.to_owned()
    } else {
        address(url, "")
    });
    let (cause, repository) = match path.split_once('/').unwrap_or((path, "")) {
        ("", _) if is_website => return Some(format!("Docker Hub's registry has another address: {root}")),
        ("v1" | "v2", rest) => ("the server adds /v2/ itself", rest),
        (first, _) if !first.is_empty() && (is_public || is_cloud) => ("the path names a repository", path),
        _ => {
            let path = path.strip_suffix("/v2")?;
            let write = write(&address(url, &format!("/{path}")));
            return Some(format!("the server adds /v2/ itself: {write}"));
        }
    };
    Some(match repository {
        "" => format!("{cause}: {root}"),
        _ if is_public => format!("{cause}: {root}; include limits a mirror to some repositories"),
        prefix => format!("{cause}: {root}, and set the prefix of repositories to {prefix}"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    /// A likely mistake has a correction that names the right URL.
    #[test_case("https://a.example/v2/" => "the server adds /v2/ itself: write https://a.example"; "the path of the API")]
    #[test_case("http://a.example:5000/v2" => "the server adds /v2/ itself: write http://a.example:5000"; "no slash at the end")]
    #[test_case("https://a.example/proxy/v2/" => "the server adds /v2/ itself: write https://a.example/proxy"; "after a path")]
    #[test_case("https://a.example/v2/hub" => "the server adds /v2/ itself: write https://a.example, and set the prefix of repositories to hub"; "before a path")]
    #[test_case("https://index.docker.io/v1/" => "the server adds /v2/ itself: write https://registry-1.docker.io"; "the key of docker login")]
    #[test_case("https://docker.io/library" => "the path names a repository: write https://registry-1.docker.io; include limits a mirror to some repositories"; "repository of Docker Hub")]
    #[test_case("https://docker.io/v2/library" => "the server adds /v2/ itself: write https://registry-1.docker.io; include limits a mirror to some repositories"; "its API with a repository")]
    #[test_case("https://docker.io" => "Docker Hub's registry has another address: write https://registry-1.docker.io"; "website of Docker Hub")]
    #[test_case("https://hub.docker.com/" => "Docker Hub's registry has another address: write https://registry-1.docker.io"; "another website of Docker Hub")]
    #[test_case("docker.io/library/alpine:3" => "the path names a repository: write https://registry-1.docker.io; include limits a mirror to some repositories"; "image")]
    #[test_case("https://quay.io/team" => "the path names a repository: write https://quay.io; include limits a mirror to some repositories"; "public registry")]
    #[test_case("https://1.dkr.ecr.eu-west-1.amazonaws.com/hub" => "the path names a repository: write https://1.dkr.ecr.eu-west-1.amazonaws.com, and set the prefix of repositories to hub"; "cloud")]
    #[test_case("quay.io" => "write https://quay.io"; "no scheme")]
    #[test_case("a.example:5000" => "write https://a.example:5000"; "no scheme and a port")]
    #[test_case("docker.io/library" => "the path names a repository: write https://registry-1.docker.io; include limits a mirror to some repositories"; "neither a scheme nor the root")]
    #[test_case("ann:secret@a.example" => "write https://a.example"; "no scheme and a password")]
    #[test_case("https://ann:secret@a.example/v2" => "the server adds /v2/ itself: write https://a.example"; "a password")]
    #[test_case("https://a.example/:5000" => "the port follows the host: write https://a.example:5000"; "a port in the path")]
    #[test_case("http://[::1]:5000/v2/" => "the server adds /v2/ itself: write http://[::1]:5000"; "an address")]
    fn likely_mistake_is_corrected(url: &str) -> String {
        correction(url).unwrap()
    }

    /// A URL that may be the one of a registry has no correction.
    #[test_case("https://registry-1.docker.io")]
    #[test_case("https://index.docker.io/"; "alias of Docker Hub")]
    #[test_case("https://quay.io")]
    #[test_case("http://127.0.0.1:5000/path")]
    #[test_case("https://a.example/artifactory/api/docker/hub")]
    #[test_case("https://a.example/v2-proxy"; "similar path")]
    #[test_case("https://a.example/v3/cache"; "another version")]
    #[test_case("ftp://a.example/v2/"; "another scheme")]
    #[test_case("https://"; "no host")]
    fn possible_url_has_no_correction(url: &str) {
        assert_eq!(correction(url), None);
    }

    proptest! {
        /// No text makes it panic, and no text gives a correction with a password.
        #[test]
        fn any_text_is_handled(text: String, host in "[a-z.]{1,20}", path in "[a-z0-9/:@]{0,20}") {
            let _ = correction(&text);
            for scheme in ["https://", ""] {
                let found = correction(&format!("{scheme}ann:hunter2@{host}/{path}"));
                prop_assert!(!found.unwrap_or_default().contains("hunter2"));
            }
        }
    }
}
