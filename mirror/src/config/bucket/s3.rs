//! `storage.s3`.

use url::Url;

use super::{
    BucketSettings, CredentialsType, Provider, S3, S3Keys, endpoint, max_size, part_size, path, required,
    root,
};
use crate::config::{Error, file};

/// Returns the bucket of the section.
///
/// # Errors
/// A key is missing, does not fit or is refused.
pub(super) fn bucket(s3: &file::S3) -> Result<BucketSettings, Error> {
    refuse_s3(s3)?;
    let endpoint = s3
        .region_endpoint
        .as_deref()
        .filter(|endpoint| !endpoint.is_empty());
    let endpoint = endpoint
        .map(|endpoint| s3_endpoint(endpoint, s3.secure.unwrap_or(true)))
        .transpose()?;
    let region = s3.region.clone().unwrap_or_default();
    if region.is_empty() && endpoint.is_none() {
        return Err(Error::invalid(
            "storage.s3.region",
            "must be set to the region of the bucket",
        ));
    }
    let credentials = s3.credentials.kind.unwrap_or_default();
    Ok(BucketSettings {
        credentials,
        redirect: None,
        name: required(
            s3.bucket.as_deref(),
            "storage.s3.bucket",
            "the name of the bucket",
        )?,
        root: root(s3.root_directory.as_deref(), "storage.s3.rootdirectory")?,
        part_size: part_size(s3.chunk_size, "storage.s3.chunksize")?,
        max_size: max_size(s3.max_size, "storage.s3.maxsize")?,
        credentials_file: path(s3.credentials_file.as_deref()),
        ca_file: path(s3.ca_file.as_deref()),
        skip_verify: s3.skip_verify,
        provider: Provider::S3(S3 {
            keys: s3_keys(s3, credentials)?,
            // Distribution 2.8 uses paths with any endpoint, and many stores know nothing else.
            path_style: s3.force_path_style.unwrap_or(endpoint.is_some()),
            region,
            endpoint,
            encrypt: s3.encrypt,
            key_id: s3.key_id.clone().filter(|key| !key.is_empty()),
            storage_class: storage_class(s3.storage_class.as_deref()),
        }),
    })
}

/// Refuses values that would change where or how objects are stored, and that have no implementation here.
fn refuse_s3(s3: &file::S3) -> Result<(), Error> {
    let private = s3.object_acl.as_deref().is_none_or(|acl| acl == "private");
    let refused = [
        (
            s3.accelerate,
            "accelerate",
            "set regionendpoint to the endpoint to use",
        ),
        (
            s3.use_dual_stack,
            "usedualstack",
            "set regionendpoint to the endpoint to use",
        ),
        (
            s3.use_fips_endpoint,
            "usefipsendpoint",
            "set regionendpoint to the endpoint to use",
        ),
        (
            s3.v2_auth,
            "v2auth",
            "requests are signed with version 4: remove it",
        ),
        (
            s3.v4_auth == Some(false),
            "v4auth",
            "requests are signed with version 4: remove it",
        ),
        (
            !private,
            "objectacl",
            "objects are private: remove it, and grant access by a policy of the bucket",
        ),
    ];
    match refused.into_iter().find(|(is_set, ..)| *is_set) {
        None => Ok(()),
        Some((_, key, reason)) => Err(Error::Refused {
            key: format!("storage.s3.{key}"),
            reason: reason.to_owned(),
        }),
    }
}

fn s3_keys(s3: &file::S3, credentials: CredentialsType) -> Result<Option<S3Keys>, Error> {
    let secret = |masked: &Option<file::Masked>| masked.as_ref().map(|masked| masked.0.clone());
    let access = s3.access_key.clone().filter(|key| !key.is_empty());
    let has_secret = access.is_some() || s3.secret_key.is_some() || s3.credentials_file.is_some();
    let what = "the access key, or set credentialsfile";
    credentials.check(has_secret, "storage.s3", "accesskey", what)?;
    match (access, secret(&s3.secret_key)) {
        (Some(access), Some(secret_key)) => Ok(Some(S3Keys {
            access,
            secret: secret_key,
            token: secret(&s3.session_token),
        })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(Error::invalid(
            "storage.s3.secretkey",
            "must be set with accesskey",
        )),
        (None, Some(_)) => Err(Error::invalid(
            "storage.s3.accesskey",
            "must be set with secretkey",
        )),
    }
}

/// Parses an endpoint with or without a scheme, as Distribution does.
fn s3_endpoint(text: &str, secure: bool) -> Result<Url, Error> {
    let key = "storage.s3.regionendpoint";
    if text.contains("://") {
        return endpoint(text, key);
    }
    let scheme = if secure { "https" } else { "http" };
    endpoint(&format!("{scheme}://{text}"), key)
}

fn storage_class(class: Option<&str>) -> Option<String> {
    let class = class?.to_ascii_uppercase();
    // These are the words for the default.
    (!matches!(class.as_str(), "" | "STANDARD" | "NONE")).then_some(class)
}
