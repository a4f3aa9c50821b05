//! Uploads in parts that nothing ends any more: their server lost its local tier.

use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer};
use serde::Deserialize;

use super::Bucket;
use super::error::Error;
use super::keys;
use super::upload::is_usable_id;

/// The age from which an upload is aborted.
const MAX_AGE: Duration = Duration::from_hours(24);
/// The validity of a signed URL.
const VALID: Duration = Duration::from_mins(1);
/// The time for a page of uploads.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest page of uploads, in bytes.
pub(crate) const MAX_UPLOADS_PAGE: usize = 4 << 20;

/// An upload in parts that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OpenUpload {
    key: String,
    id: String,
    initiated: Timestamp,
}

/// A page of uploads as the store sends it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UploadsPage {
    #[serde(default)]
    upload: Vec<ListedUpload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedUpload {
    key: String,
    upload_id: String,
    initiated: String,
}

impl Bucket {
    /// Aborts uploads of content below the prefix that began more than a day ago, and returns their number. Does nothing
    /// where the store is not S3: the crate has no listing of uploads, and the other stores need a lifecycle rule.
    pub(crate) async fn abort_old_uploads(&self) -> Result<usize, Error> {
        let client = self.client.load_full();
        let Some((signer, http)) = client.uploads() else {
            return Ok(0);
        };
        let page = tokio::time::timeout(PATIENCE, list(signer, http, &self.settings.root));
        let text = page
            .await
            .unwrap_or_else(|_| Err(Error::unavailable("no answer to a listing of uploads")))?;
        let now = Timestamp::now();
        let is_old = |upload: &OpenUpload| {
            Duration::try_from(now.duration_since(upload.initiated)).is_ok_and(|age| age >= MAX_AGE)
        };
        let is_content = |upload: &OpenUpload| {
            upload.key.starts_with(&self.settings.root)
                && keys::digest_of_data(&Key::from(upload.key.as_str())).is_some()
        };
        let mut aborted = 0;
        for upload in parse(&text)?.into_iter().filter(is_old).filter(is_content) {
            let key = Key::from(upload.key.as_str());
            let sent = self
                .sent(0, |client| {
                    let (key, id) = (key.clone(), upload.id.clone());
                    async move { client.multipart().abort_multipart(&key, &id).await }
                })
                .await;
            match sent {
                Ok(()) => aborted += 1,
                Err(Error::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(aborted)
    }
}

/// Returns a page of the uploads below a prefix, the first 1,000 in the order of their keys: the next day has the next.
async fn list(signer: &dyn Signer, http: &reqwest::Client, root: &str) -> Result<String, Error> {
    let prefix = if root.is_empty() {
        String::new()
    } else {
        format!("{root}/")
    };
    let query = [("uploads", String::new()), ("prefix", prefix)];
    let options = SignedUrlOptions::new().with_query(query);
    let url = signer
        .signed_url_opts(Method::GET, &Key::default(), VALID, &options)
        .await?;
    // An error of the client repeats the URL, which is signed.
    let failed = |_| Error::unavailable("no answer to a listing of uploads");
    let mut answer = http.get(url).send().await.map_err(failed)?;
    if !answer.status().is_success() {
        let what = format!("a listing of uploads was answered with {}", answer.status());
        return Err(Error::unavailable(what));
    }
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if text.len() + chunk.len() > MAX_UPLOADS_PAGE {
            return Err(Error::unavailable("a listing of uploads is too long"));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Returns the uploads of a page, without those whose time is malformed or whose key or id fits no URL.
fn parse(text: &str) -> Result<Vec<OpenUpload>, Error> {
    let page: UploadsPage =
        quick_xml::de::from_str(text).map_err(|_| Error::unavailable("a listing of uploads is malformed"))?;
    let upload = |listed: ListedUpload| {
        Some(OpenUpload {
            initiated: listed.initiated.parse().ok()?,
            key: listed.key,
            id: listed.upload_id,
        })
    };
    let is_usable = |listed: &ListedUpload| is_usable_id(&listed.upload_id) && is_usable_id(&listed.key);
    Ok(page
        .upload
        .into_iter()
        .filter(is_usable)
        .filter_map(upload)
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Uploads are read from the answer of a store, without those of a malformed time.
    #[test]
    fn uploads_are_read_from_a_listing() {
        let text = "<ListMultipartUploadsResult><Prefix>a</Prefix>\
            <Upload><Key>a&amp;b/data</Key><UploadId>u1</UploadId><Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload>\
            <Upload><Key>c</Key><UploadId>u2</UploadId><Initiated>yesterday</Initiated></Upload>\
            </ListMultipartUploadsResult>";
        let expected = OpenUpload {
            key: "a&b/data".to_owned(),
            id: "u1".to_owned(),
            initiated: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        assert_eq!(parse(text).unwrap(), [expected]);
        assert_eq!(parse("<ListMultipartUploadsResult/>").unwrap(), []);
    }

    proptest! {
        #[test]
        fn any_listing_is_read_without_panic(text: String) {
            let _ = parse(&format!("<a><Upload>{text}"));
        }
    }
}
