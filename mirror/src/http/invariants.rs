//! See [`crate::fuzzing`].

use http::Uri;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::access_log::shown;
use super::route::Route;
use crate::secret::mask_user_in_path;

/// Checks that a request target parses to one route. Returns its name and its reference or digest, if it has them.
pub(crate) fn request(target: &[u8]) -> Option<(String, String)> {
    let uri = Uri::try_from(target).ok()?;
    let line = shown(&uri);
    let query = line
        .strip_prefix(&*mask_user_in_path(uri.path()))
        .unwrap_or(&line);
    assert!(!query.contains("token="), "{line}");
    let route = Route::parse(uri.path(), "");
    let (name, word, reference) = match &route {
        Route::Manifest { name, reference } => (name, "manifests", reference),
        Route::Blob { name, digest } => (name, "blobs", digest),
        Route::Referrers { name, digest } => (name, "referrers", digest),
        Route::Tags { name } => (name, "tags", &"list".into()),
        _ => return None,
    };
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let path = format!("/v2/{}/{word}/{}", encoded(name), encoded(reference));
    assert_eq!(Route::parse(&path, ""), route, "{path}");
    Some((name.to_string(), reference.to_string()))
}
