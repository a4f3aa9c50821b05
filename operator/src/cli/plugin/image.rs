//! The name of an image, as `kubectl rmir` takes it.

use std::{fmt, str::FromStr};

use mirror::name::{Host, Reference, RepositoryName};

/// The registry of names without one.
const DOCKER_HUB: &str = "docker.io";
/// The tag of names without one, when an image is pulled.
const LATEST: &str = "latest";

/// An image: registry, repository, and a tag or digest if the name has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageName {
    /// The registry, as nodes name it.
    pub(super) registry: Host,
    /// The repository in the registry; with `library/` for the official images of Docker Hub.
    pub(super) repository: RepositoryName,
    /// The tag or digest.
    pub(super) reference: Option<Reference>,
}

/// The reason why a text is not the name of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidImage {
    /// A scheme.
    #[error("image {0:?} begins with a scheme: write {1}")]
    Scheme(String, String),
    /// A registry that is none.
    #[error(
        "image {image:?}: {registry:?} is not a registry: expected HOST[:PORT], such as docker.io or registry.example.com:5000"
    )]
    Registry { image: String, registry: String },
    /// Capital letters.
    #[error("image {0:?}: repository names are lower case: write {1}")]
    Case(String, String),
    /// A repository that is none.
    #[error(
        "image {image:?}: {name:?} is not a repository: expected lower-case path components, such as library/nginx"
    )]
    Repository { image: String, name: String },
    /// A tag that is none.
    #[error("image {image:?}: {tag:?} is not a tag: expected at most 128 of A-Z, a-z, 0-9, '.', '_' and '-'")]
    Tag { image: String, tag: String },
    /// A digest that is none.
    #[error("image {image:?}: {digest:?} is not a digest: expected sha256: and 64 hexadecimal digits")]
    Digest { image: String, digest: String },
}

impl ImageName {
    /// Returns the tag or digest, `latest` if the name has none.
    pub(super) fn reference_or_latest(&self) -> String {
        match &self.reference {
            Some(reference) => reference.to_string(),
            None => LATEST.to_owned(),
        }
    }
}

impl FromStr for ImageName {
    type Err = InvalidImage;

    /// Parses a name as container runtimes do: the first part is a registry if it has a dot or a colon, or is `localhost`.
    fn from_str(text: &str) -> Result<Self, InvalidImage> {
        let image = || shortened(text);
        if let Some((_, rest)) = text.split_once("://") {
            return Err(InvalidImage::Scheme(image(), shortened(rest)));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (registry, rest) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => (DOCKER_HUB, name),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let path = match registry {
            DOCKER_HUB | "index.docker.io" if !path.contains('/') => format!("library/{path}"),
            _ => path.to_owned(),
        };
        Ok(Self {
            registry: registry.parse().map_err(|_| InvalidImage::Registry {
                image: image(),
                registry: shortened(registry),
            })?,
            repository: repository(text, rest, &path)?,
            reference: reference(text, tag, digest)?,
        })
    }
}

fn repository(image: &str, rest: &str, path: &str) -> Result<RepositoryName, InvalidImage> {
    path.parse().map_err(|_| {
        let lower = path.to_ascii_lowercase();
        if lower.parse::<RepositoryName>().is_ok() {
            let name = rest.rsplit_once(':').map_or(rest, |(name, _)| name);
            let written = image.replacen(name, &name.to_ascii_lowercase(), 1);
            return InvalidImage::Case(shortened(image), shortened(&written));
        }
        InvalidImage::Repository {
            image: shortened(image),
            name: shortened(path),
        }
    })
}

/// Returns the digest or else the tag.
fn reference(
    image: &str,
    tag: Option<&str>,
    digest: Option<&str>,
) -> Result<Option<Reference>, InvalidImage> {
    if let Some(tag) = tag
        && !matches!(tag.parse(), Ok(Reference::Tag(_)))
    {
        return Err(InvalidImage::Tag {
            image: shortened(image),
            tag: shortened(tag),
        });
    }
    match digest.map(str::parse) {
        Some(Ok(reference @ Reference::Digest(_))) => Ok(Some(reference)),
        Some(_) => Err(InvalidImage::Digest {
            image: shortened(image),
            digest: shortened(digest.unwrap_or_default()),
        }),
        None => Ok(tag.and_then(|tag| tag.parse().ok())),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(255).collect()
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.reference {
            Some(Reference::Tag(tag)) => write!(f, ":{tag}"),
            Some(Reference::Digest(digest)) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("nginx" => "docker.io/library/nginx"; "an official image")]
    #[test_case("nginx:1.27" => "docker.io/library/nginx:1.27"; "with a tag")]
    #[test_case("grafana/loki:3" => "docker.io/grafana/loki:3"; "of a user")]
    #[test_case("quay.io/a/b:c" => "quay.io/a/b:c"; "another registry")]
    #[test_case("localhost/a:c" => "localhost/a:c"; "localhost")]
    #[test_case("registry:5000/a:c" => "registry:5000/a:c"; "a port")]
    #[test_case("registry:5000/a" => "registry:5000/a"; "a port without a tag")]
    fn image_names_are_completed(text: &str) -> String {
        text.parse::<ImageName>().unwrap().to_string()
    }

    #[test]
    fn digest_takes_precedence_over_tag() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let image: ImageName = format!("quay.io/a:b@{digest}").parse().unwrap();
        assert_eq!(image.reference_or_latest(), digest);
    }

    #[test_case("https://docker.io/nginx" => "image \"https://docker.io/nginx\" begins with a scheme: write docker.io/nginx"; "a scheme")]
    #[test_case("docker.io/Library/Nginx:1" => "image \"docker.io/Library/Nginx:1\": repository names are lower case: write docker.io/library/nginx:1"; "capitals")]
    #[test_case("quay.io/" => "image \"quay.io/\": \"\" is not a repository: expected lower-case path components, such as library/nginx"; "no repository")]
    #[test_case("nginx:a b" => "image \"nginx:a b\": \"a b\" is not a tag: expected at most 128 of A-Z, a-z, 0-9, '.', '_' and '-'"; "a tag with a space")]
    #[test_case("nginx@sha256:1" => "image \"nginx@sha256:1\": \"sha256:1\" is not a digest: expected sha256: and 64 hexadecimal digits"; "a short digest")]
    fn invalid_image_is_explained(text: &str) -> String {
        text.parse::<ImageName>().unwrap_err().to_string()
    }
}
