//! `/status/content` and `/status/fills`: the cached images, and the downloads that run.

use serde::{Deserialize, Serialize};

use crate::pull::FillSnapshot;
use crate::store::{ImageEntry, ImageOrder, ImagePage, ImageRequest, MAX_IMAGES};

/// The images of a report without `n`.
const DEFAULT_LIMIT: usize = 50;
/// The most characters of `q`.
const MAX_SEARCH: usize = 255;

/// The parameters of a query, as they come.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContentRequest {
    /// `used`, `name`, `size`, `pulls` or `validated`.
    pub sort: Option<String>,
    /// The most images.
    pub n: Option<String>,
    /// A part of the names.
    pub q: Option<String>,
}

/// The report at `/status/content`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentReport {
    /// The number of images in the cache.
    pub total: usize,
    /// The number of images whose name contains `q`.
    pub matching: usize,
    /// The first of them.
    pub images: Vec<ImageStatus>,
}

/// A cached image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// `host/repository:tag`.
    pub name: String,
    /// The digest of the manifest.
    pub digest: String,
    /// Bytes of manifests, configuration and layers in the cache.
    pub bytes: u64,
    /// The platforms whose manifests are in the cache, such as `linux/amd64`.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// The GET requests that clients made for the manifest since it came into the cache.
    #[serde(default)]
    pub pulls: u64,
    /// The last use (RFC 3339).
    pub last_used: String,
    /// The last confirmation by the upstream (RFC 3339).
    pub validated: String,
    /// `true` if it neither expires nor gives way.
    pub pinned: bool,
}

/// A download into the cache that runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FillStatus {
    /// `host/repository`.
    pub repository: String,
    /// The blob.
    pub digest: String,
    /// Bytes that arrived.
    pub bytes: u64,
    /// The size, if the upstream announced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes per second since the start.
    pub bytes_per_second: u64,
    /// The clients that read or wait.
    pub clients: usize,
    /// The time since the start.
    pub seconds: u64,
}

impl ContentRequest {
    /// Returns the query.
    ///
    /// # Errors
    /// The parameter that is malformed.
    pub fn query(&self) -> Result<ImageRequest, String> {
        let sort = match self.sort.as_deref().unwrap_or_default() {
            "" | "used" => ImageOrder::Used,
            "name" => ImageOrder::Name,
            "size" => ImageOrder::Size,
            "pulls" => ImageOrder::Pulls,
            "validated" => ImageOrder::Validated,
            _ => return Err("sort: expected used, name, size, pulls or validated".to_owned()),
        };
        let limit = match self.n.as_deref().unwrap_or_default() {
            "" => DEFAULT_LIMIT,
            n => n
                .parse()
                .map_err(|_| format!("n: expected a number up to {MAX_IMAGES}"))?,
        };
        let search = self.q.as_deref().unwrap_or_default();
        if search.chars().count() > MAX_SEARCH {
            return Err(format!("q: longer than {MAX_SEARCH} characters"));
        }
        Ok(ImageRequest {
            search: search.to_owned(),
            sort,
            limit,
        })
    }
}

impl From<ImagePage> for ContentReport {
    fn from(page: ImagePage) -> Self {
        Self {
            total: page.total,
            matching: page.matching,
            images: page.images.into_iter().map(ImageStatus::from).collect(),
        }
    }
}

impl From<ImageEntry> for ImageStatus {
    fn from(image: ImageEntry) -> Self {
        Self {
            name: image.name,
            digest: image.digest.as_str().to_owned(),
            bytes: image.bytes,
            platforms: image.platforms,
            pulls: image.pulls,
            last_used: image.used.to_string(),
            validated: image.validated.to_string(),
            pinned: image.is_pinned,
        }
    }
}

impl From<FillSnapshot> for FillStatus {
    fn from(fill: FillSnapshot) -> Self {
        let milliseconds = u64::try_from(fill.age.as_millis()).unwrap_or(u64::MAX).max(1);
        Self {
            repository: fill.repository.to_string(),
            digest: fill.digest.as_str().to_owned(),
            bytes: fill.written,
            size: fill.size,
            bytes_per_second: fill.written.saturating_mul(1_000) / milliseconds,
            clients: fill.clients,
            seconds: fill.age.as_secs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("", "", "" => Ok((ImageOrder::Used, 50)))]
    #[test_case("size", "3", "nginx" => Ok((ImageOrder::Size, 3)))]
    #[test_case("pulls", "", "" => Ok((ImageOrder::Pulls, 50)))]
    #[test_case("digest", "", "" => Err("sort: expected used, name, size, pulls or validated".to_owned()))]
    #[test_case("", "-1", "" => Err("n: expected a number up to 1000".to_owned()))]
    fn parameters_are_checked(sort: &str, n: &str, q: &str) -> Result<(ImageOrder, usize), String> {
        let some = |text: &str| Some(text.to_owned());
        let parameters = ContentRequest {
            sort: some(sort),
            n: some(n),
            q: some(q),
        };
        parameters.query().map(|query| (query.sort, query.limit))
    }

    #[test]
    fn long_search_is_refused() {
        let q = Some("x".repeat(MAX_SEARCH + 1));
        let parameters = ContentRequest {
            q,
            ..ContentRequest::default()
        };
        assert!(parameters.query().is_err());
    }
}
