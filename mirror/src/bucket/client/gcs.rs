//! The client of Google Cloud Storage.

use std::sync::Arc;

use object_store::gcp::{
    GcpCredential, GcpSigningCredential, GcpSigningCredentialProvider, GoogleCloudStorageBuilder,
    ServiceAccountKey,
};
use object_store::{ClientOptions, StaticCredentialProvider};
use serde::Deserialize;

use super::signer::RedirectSigner;
use super::{Stores, no_identity, no_retries, unusable_key};
use crate::bucket::connector::Connector;
use crate::bucket::error::BucketError;
use crate::bucket::identity;
use crate::config::bucket::{BucketSettings, CredentialsType, Provider};
use crate::secret::Secret;

/// Creates the client.
///
/// # Errors
/// A value or a file does not fit, or the process has no identity.
pub(super) fn stores(
    bucket: &BucketSettings,
    credentials: Option<&str>,
    connector: Connector,
) -> Result<Stores, BucketError> {
    let builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&bucket.name)
        .with_retry(no_retries());
    let builder = match bucket.credentials {
        CredentialsType::Secret => {
            let key = credentials.map_or_else(|| inline_key(bucket), str::to_owned);
            let builder = match &bucket.redirect {
                None => builder,
                Some(_) => builder.with_signing_credentials(signature(bucket, &key)?),
            };
            builder
                .with_client_options(ClientOptions::new().with_allow_http(key.contains("\"http://")))
                .with_service_account_key(key)
        }
        CredentialsType::WorkloadIdentity => builder
            .with_credentials(identity::gcp().map_err(|reason| no_identity(bucket, reason))?)
            .with_signing_credentials(no_signature()),
        CredentialsType::Anonymous => builder
            .with_credentials(Arc::new(StaticCredentialProvider::new(GcpCredential {
                bearer: String::new(),
            })))
            .with_signing_credentials(no_signature())
            .with_skip_signature(true),
    };
    let built = builder.with_http_connector(connector).build();
    let built = Arc::new(built.map_err(|_| unusable_key(bucket, "the JSON key of the service account"))?);
    Ok(Stores {
        objects: built.clone(),
        lists: built.clone(),
        signer: bucket
            .redirect
            .as_ref()
            .map(|_| RedirectSigner::new(built.clone())),
        multipart: built,
        uploads: None,
    })
}

/// Returns the key of the configuration as JSON.
fn inline_key(bucket: &BucketSettings) -> String {
    let Provider::Gcs { credentials } = &bucket.provider else {
        return String::new();
    };
    let plain = credentials
        .iter()
        .map(|(key, value)| (key.clone(), value.expose().into()));
    serde_json::Value::Object(plain.collect()).to_string()
}

/// The part of the key of a service account that signs.
#[derive(Deserialize)]
struct SigningKey {
    client_email: String,
    private_key: Secret,
}

/// Returns the private key of a service account, which signs URLs without a request to the cloud.
///
/// # Errors
/// The key has none.
fn signature(bucket: &BucketSettings, key: &str) -> Result<GcpSigningCredentialProvider, BucketError> {
    let failed = "the JSON key of the service account, whose client_email and private_key sign URLs,";
    let key: SigningKey = serde_json::from_str(key).map_err(|_| unusable_key(bucket, failed))?;
    let private = ServiceAccountKey::from_pem(key.private_key.expose().as_bytes());
    Ok(Arc::new(StaticCredentialProvider::new(GcpSigningCredential {
        email: key.client_email,
        private_key: Some(private.map_err(|_| unusable_key(bucket, failed))?),
    })))
}

/// Returns signing credentials that sign nothing: without them the crate would ask the metadata server for an email.
fn no_signature() -> Arc<StaticCredentialProvider<GcpSigningCredential>> {
    Arc::new(StaticCredentialProvider::new(GcpSigningCredential {
        email: String::new(),
        private_key: None,
    }))
}
