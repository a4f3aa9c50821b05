//! The client of Amazon S3, or of a store with its API.

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use object_store::{ClientOptions, StaticCredentialProvider};
use url::Url;

use super::signer::RedirectSigner;
use super::{Stores, credentials_key, invalid, lacking, no_identity, no_retries};
use crate::bucket::connector::Connector;
use crate::bucket::credentials::CredentialsFile;
use crate::bucket::error::BucketError;
use crate::bucket::identity;
use crate::config::bucket::{BucketSettings, CredentialsType, S3};

/// Creates the client, and the signer of URLs for clients if the settings have redirects.
///
/// # Errors
/// A value or a file does not fit, or the process has no identity.
pub(super) fn stores(
    bucket: &BucketSettings,
    s3: &S3,
    credentials: Option<&str>,
    connector: &Connector,
) -> Result<Stores, BucketError> {
    let provider = match bucket.credentials {
        CredentialsType::Secret => keys(bucket, s3, credentials)?,
        CredentialsType::WorkloadIdentity => {
            identity::aws(region(s3)).map_err(|reason| no_identity(bucket, reason))?
        }
        CredentialsType::Anonymous => fixed(String::new(), String::new(), None),
    };
    let build = |endpoint: Option<&Url>| {
        let builder = builder(bucket, s3, endpoint).with_credentials(Arc::clone(&provider));
        let built = builder.with_http_connector(connector.clone()).build();
        built
            .map(Arc::new)
            .map_err(|error| invalid(bucket, error.to_string()))
    };
    let store = build(s3.endpoint.as_ref())?;
    let signer = match &bucket.redirect {
        None => None,
        Some(redirect) => {
            let store = build(redirect.endpoint.as_ref().or(s3.endpoint.as_ref()))?;
            Some(RedirectSigner::new(store))
        }
    };
    let uploads = (bucket.credentials != CredentialsType::Anonymous)
        .then(|| (Arc::clone(&store) as _, connector.client()));
    Ok(Stores {
        objects: store.clone(),
        uploads,
        lists: store.clone(),
        multipart: store,
        signer,
    })
}

/// Returns the keys of the file, or else those of the configuration.
fn keys(
    bucket: &BucketSettings,
    s3: &S3,
    credentials: Option<&str>,
) -> Result<AwsCredentialProvider, BucketError> {
    let key = credentials_key(bucket);
    let file = credentials
        .map(|text| CredentialsFile::parse(text, key))
        .transpose()?;
    let (access, secret, token) = match (file, &s3.keys) {
        (Some(file), _) => match (file.access_key, file.secret_key) {
            (Some(access), Some(secret)) => (access, secret, file.session_token),
            _ => return Err(lacking(key, "accesskey and secretkey")),
        },
        (None, Some(keys)) => (keys.access.clone(), keys.secret.clone(), keys.token.clone()),
        (None, None) => return Err(lacking(key, "accesskey and secretkey")),
    };
    let token = token.map(|token| token.expose().to_owned());
    Ok(fixed(access, secret.expose().to_owned(), token))
}

fn fixed(key_id: String, secret_key: String, token: Option<String>) -> AwsCredentialProvider {
    Arc::new(StaticCredentialProvider::new(AwsCredential {
        key_id,
        secret_key,
        token,
    }))
}

fn region(s3: &S3) -> &str {
    if s3.region.is_empty() {
        "us-east-1"
    } else {
        &s3.region
    }
}

fn builder(bucket: &BucketSettings, s3: &S3, endpoint: Option<&Url>) -> AmazonS3Builder {
    let is_plain = endpoint.is_some_and(|url| url.scheme() == "http");
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&bucket.name)
        .with_region(region(s3))
        .with_virtual_hosted_style_request(!s3.path_style)
        // TLS protects the payload already, and its hash would cost as much as the one of the digest.
        .with_unsigned_payload(!is_plain)
        .with_skip_signature(bucket.credentials == CredentialsType::Anonymous)
        .with_client_options(ClientOptions::new().with_allow_http(is_plain))
        .with_retry(no_retries());
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(s3_endpoint(endpoint, &bucket.name, s3.path_style));
    }
    if s3.encrypt {
        builder = encrypted(builder, s3.key_id.as_deref());
    }
    builder
}

fn encrypted(builder: AmazonS3Builder, key_id: Option<&str>) -> AmazonS3Builder {
    match (key_id, "aws_server_side_encryption".parse()) {
        (Some(key_id), _) => builder.with_sse_kms_encryption(key_id),
        (None, Ok(key)) => builder.with_config(key, "AES256"),
        // A test of the crate's own keys keeps this from happening.
        (None, Err(_)) => builder,
    }
}

/// Returns the endpoint as the crate takes it: with the name of the bucket in the host unless the path has it.
fn s3_endpoint(endpoint: &Url, bucket: &str, path_style: bool) -> String {
    let mut endpoint = endpoint.clone();
    if !path_style && let Some(host) = endpoint.host_str().map(|host| format!("{bucket}.{host}")) {
        // An IP address has no subdomains: the request then goes to the bucket's path after all.
        let _ = endpoint.set_host(Some(&host));
    }
    endpoint.as_str().trim_end_matches('/').to_owned()
}
