//! Counts of the requests to an upstream.

use http::Method;

/// Requests by kind, and what their answers carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// `HEAD` of a manifest.
    pub manifest_heads: u64,
    /// `GET` of a manifest.
    pub manifest_gets: u64,
    /// `HEAD` of a blob.
    pub blob_heads: u64,
    /// `GET` of a blob, whole or in part.
    pub blob_gets: u64,
    /// Requests for a token.
    pub tokens: u64,
    /// Other requests: the version check, lists of tags, referrers.
    pub others: u64,
    /// Of all these, how many were answered with 401.
    pub challenges: u64,
    /// Bytes of the bodies of manifests, as far as they were sent.
    pub manifest_bytes: u64,
    /// Bytes of the bodies of blobs, as far as they were sent.
    pub blob_bytes: u64,
}

/// The kind of content that a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Blob,
    Token,
    Other,
}

impl Kind {
    pub(super) fn from_path(path: &str) -> Self {
        let mut from_the_end = path.rsplit('/').skip(1);
        match from_the_end.next() {
            _ if path == super::tokens::PATH => Self::Token,
            Some("manifests") => Self::Manifest,
            Some("blobs") => Self::Blob,
            _ => Self::Other,
        }
    }
}

impl Counts {
    /// Returns the number of all requests.
    pub fn requests(&self) -> u64 {
        let content = self.manifest_heads + self.manifest_gets + self.blob_heads + self.blob_gets;
        content + self.tokens + self.others
    }

    /// Returns the bytes of all content.
    pub fn bytes(&self) -> u64 {
        self.manifest_bytes + self.blob_bytes
    }

    pub(super) fn request(&mut self, kind: Kind, method: &Method) {
        let head = method == Method::HEAD;
        *match kind {
            Kind::Manifest if head => &mut self.manifest_heads,
            Kind::Manifest => &mut self.manifest_gets,
            Kind::Blob if head => &mut self.blob_heads,
            Kind::Blob => &mut self.blob_gets,
            Kind::Token => &mut self.tokens,
            Kind::Other => &mut self.others,
        } += 1;
    }

    pub(super) fn sent(&mut self, kind: Kind, bytes: u64) {
        match kind {
            Kind::Manifest => self.manifest_bytes += bytes,
            Kind::Blob => self.blob_bytes += bytes,
            Kind::Token | Kind::Other => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests are classified by their paths.
    #[test]
    fn requests_are_classified_by_path() {
        for (path, kind) in [
            ("/v2/", Kind::Other),
            ("/v2/a/b/manifests/latest", Kind::Manifest),
            ("/v2/blobs/manifests/sha256:0", Kind::Manifest),
            ("/v2/a/blobs/sha256:0", Kind::Blob),
            ("/v2/a/tags/list", Kind::Other),
            ("/token", Kind::Token),
        ] {
            assert_eq!(Kind::from_path(path), kind, "{path}");
        }
    }
}
