//! `storage.redirect`: redirects of clients to the bucket.

use serde::{Deserialize, Serialize};
use url::Url;

use super::{AzureCredential, BucketSettings, CredentialsType, Provider, endpoint};
use crate::config::overlay::Overlay;
use crate::config::{Error, file};

/// The default size from which a blob is large, in bytes.
pub(super) const LARGE: u64 = 16 << 20;

/// The blobs whose clients are redirected to the bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedirectMode {
    /// None.
    #[default]
    Never,
    /// Large ones.
    Large,
}

impl Overlay for RedirectMode {
    const VALUES: &'static str = "Never or Large";
}

/// The settings of redirects to the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectSettings {
    /// The size from which a blob is large, in bytes.
    pub min_size: u64,
    /// The address of the store for clients; `None`: the address that the server uses.
    pub endpoint: Option<Url>,
}

/// Returns the settings of redirects to a bucket; `None` if no client is redirected.
///
/// # Errors
/// A value does not fit, or the bucket has no signed URLs.
pub(super) fn settings(
    storage: &file::Storage,
    bucket: Option<&BucketSettings>,
) -> Result<Option<RedirectSettings>, Error> {
    let redirect = &storage.redirect;
    let invalid = |reason: &str| Err(Error::invalid("storage.redirect.mode", reason));
    match (redirect.mode, redirect.disable) {
        (None | Some(RedirectMode::Never), _) => return Ok(None),
        (Some(RedirectMode::Large), true) => {
            return invalid("Large contradicts storage.redirect.disable: remove one of the keys");
        }
        (Some(RedirectMode::Large), false) => {}
    }
    let Some(bucket) = bucket else {
        return invalid(
            "Large needs a bucket: configure storage.s3, storage.gcs or storage.azure, or set Never",
        );
    };
    if !can_sign(bucket) {
        return invalid(
            "Large needs credentials that sign URLs: the keys of S3 or its workload identity, the JSON key of a service \
             account of Google Cloud, or the key of a storage account of Azure: configure them, or set Never",
        );
    }
    let own = redirect.endpoint.as_deref().filter(|text| !text.is_empty());
    let s3 = storage.s3.as_ref();
    let theirs = s3.and_then(|s3| s3.redirect_endpoint.as_deref().filter(|text| !text.is_empty()));
    let endpoint = match (own, theirs) {
        (Some(text), _) => Some(endpoint(text, "storage.redirect.endpoint")?),
        (None, Some(text)) => Some(endpoint(text, "storage.s3.redirectendpoint")?),
        (None, None) => None,
    };
    if endpoint.is_some() && matches!(bucket.provider, Provider::Gcs { .. }) {
        return Err(Error::invalid(
            "storage.redirect.endpoint",
            "must not be set with storage.gcs, whose signatures name the store: remove it",
        ));
    }
    Ok(Some(RedirectSettings {
        min_size: redirect.min_size.map_or(LARGE, |size| size.0),
        endpoint,
    }))
}

/// Returns true if the credentials of a bucket sign URLs without a request to the cloud.
fn can_sign(bucket: &BucketSettings) -> bool {
    match (&bucket.provider, bucket.credentials) {
        (_, CredentialsType::Anonymous) => false,
        (Provider::S3(_), _) => true,
        (Provider::Gcs { .. }, kind) => kind == CredentialsType::Secret,
        (Provider::Azure(azure), kind) => {
            let is_key = !matches!(azure.credential, Some(AzureCredential::Client { .. }));
            kind == CredentialsType::Secret && is_key
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;
    use test_case::test_case;

    const S3: &str = "s3: {bucket: b, region: r, accesskey: a, secretkey: s}";

    fn parsed(redirect: &str, driver: &str) -> Result<Option<RedirectSettings>, Error> {
        let yaml = format!("storage: {{redirect: {redirect}, {driver}}}");
        let bucket = BucketSettings::new(&File::parse(&yaml).unwrap().storage)?;
        Ok(bucket.and_then(|bucket| bucket.redirect))
    }

    /// Redirects are off unless the mode is `Large`.
    #[test_case("{}" => None; "absent")]
    #[test_case("{disable: true}" => None; "disabled")]
    #[test_case("{disable: false}" => None; "not disabled")]
    #[test_case("{mode: Never, minsize: 1Mi, disable: true}" => None; "never")]
    #[test_case("{mode: Large}" => Some((LARGE, None)); "large")]
    #[test_case("{mode: Large, minsize: 1Gi}" => Some((1 << 30, None)); "with a size")]
    #[test_case("{mode: Large, endpoint: 'https://s3.example'}" => Some((LARGE, Some("https://s3.example/".into()))); "with a name")]
    fn redirect_mode_is_never_by_default(yaml: &str) -> Option<(u64, Option<String>)> {
        let settings = parsed(yaml, S3).unwrap()?;
        Some((settings.min_size, settings.endpoint.map(String::from)))
    }

    /// A key that signs redirects clients to any store.
    #[test_case("gcs: {bucket: b, keyfile: /k}"; "google")]
    #[test_case("azure: {accountname: a, container: c, accountkey: k}"; "azure")]
    #[test_case("azure: {accountname: a, container: c, credentialsfile: /k}"; "a file of azure")]
    fn store_with_a_signing_key_has_redirects(driver: &str) {
        assert!(parsed("{mode: Large}", driver).unwrap().is_some());
    }

    /// Distribution's key for the public address has the same meaning.
    #[test]
    fn redirect_endpoint_of_distribution_is_read() {
        let driver = S3.replace("bucket: b", "bucket: b, redirectendpoint: 'https://s3.example'");
        let settings = parsed("{mode: Large}", &driver).unwrap().unwrap();
        assert_eq!(settings.endpoint.unwrap().as_str(), "https://s3.example/");
    }

    /// A mistake names its key.
    #[test_case("{mode: Large, disable: true}", S3 => "storage.redirect.mode"; "a contradiction")]
    #[test_case("{mode: Large}", "filesystem: {}" => "storage.redirect.mode"; "no bucket")]
    #[test_case("{mode: Large}", "gcs: {bucket: b, credentials: {type: WorkloadIdentity}}" => "storage.redirect.mode"; "a workload identity of Google")]
    #[test_case("{mode: Large, endpoint: 'https://s3.example'}", "gcs: {bucket: b, keyfile: /k}" => "storage.redirect.endpoint"; "a name of Google")]
    #[test_case("{mode: Large}", "azure: {accountname: a, container: c, credentials: {type: WorkloadIdentity}}" => "storage.redirect.mode"; "a workload identity of Azure")]
    #[test_case("{mode: Large}", "azure: {accountname: a, container: c, credentials: {type: client_secret, clientid: c, tenantid: t, secret: s}}" => "storage.redirect.mode"; "an application of Azure")]
    #[test_case("{mode: Large}", "s3: {bucket: b, region: r, credentials: {type: Anonymous}}" => "storage.redirect.mode"; "no signature")]
    #[test_case("{mode: Large, endpoint: s3.example}", S3 => "storage.redirect.endpoint"; "no URL")]
    fn redirect_mistakes_name_the_key(redirect: &str, driver: &str) -> String {
        match parsed(redirect, driver).unwrap_err() {
            Error::Invalid { key, .. } => key,
            other => panic!("{other}"),
        }
    }
}
