//! The client of Azure Blob Storage.

use std::sync::Arc;

use object_store::azure::{AzureCredential, MicrosoftAzureBuilder};
use object_store::{ClientOptions, StaticCredentialProvider};
use url::Url;

use super::signer::RedirectSigner;
use super::{Stores, credentials_key, lacking, no_identity, no_retries, unusable_key};
use crate::bucket::connector::Connector;
use crate::bucket::credentials::CredentialsFile;
use crate::bucket::error::BucketError;
use crate::bucket::identity;
use crate::config::bucket::{self, Azure, BucketSettings, CredentialsType, RedirectSettings};

/// Creates the client.
///
/// # Errors
/// A value or a file does not fit, or the process has no identity.
pub(super) fn stores(
    bucket: &BucketSettings,
    azure: &Azure,
    credentials: Option<&str>,
    connector: &Connector,
) -> Result<Stores, BucketError> {
    let build = |service: &str| {
        let builder = MicrosoftAzureBuilder::new()
            .with_account(&azure.account)
            .with_container_name(&bucket.name)
            .with_endpoint(service.trim_end_matches('/').to_owned())
            .with_client_options(ClientOptions::new().with_allow_http(service.starts_with("http:")))
            .with_retry(no_retries());
        let builder = match bucket.credentials {
            CredentialsType::Secret => with_secret(builder, bucket, azure, credentials)?,
            CredentialsType::WorkloadIdentity => {
                builder.with_credentials(identity::azure().map_err(|reason| no_identity(bucket, reason))?)
            }
            CredentialsType::Anonymous => {
                let none = AzureCredential::BearerToken(String::new());
                builder
                    .with_credentials(Arc::new(StaticCredentialProvider::new(none)))
                    .with_skip_signature(true)
            }
        };
        let store = builder.with_http_connector(connector.clone()).build();
        store
            .map(Arc::new)
            .map_err(|_| unusable_key(bucket, "the key of the storage account"))
    };
    let store = build(azure.service.as_str())?;
    let signer = match &bucket.redirect {
        None => None,
        Some(redirect) => Some(RedirectSigner::at(
            build(&signed_service(&azure.account))?,
            address(azure, redirect),
        )),
    };
    Ok(Stores {
        objects: store.clone(),
        lists: store.clone(),
        multipart: store,
        signer,
        uploads: None,
    })
}

/// Returns the address of an account by which URLs are signed. The signature covers the account, and the crate reads it from
/// the host.
fn signed_service(account: &str) -> String {
    format!("https://{account}.blob.core.windows.net")
}

/// Returns the address of the account's blobs for clients.
fn address(azure: &Azure, redirect: &RedirectSettings) -> Url {
    let mut address = redirect.endpoint.as_ref().unwrap_or(&azure.service).clone();
    address.set_path(azure.service.path());
    address
}

/// Adds the key of the file, or else the secret of the configuration.
fn with_secret(
    builder: MicrosoftAzureBuilder,
    bucket: &BucketSettings,
    azure: &Azure,
    credentials: Option<&str>,
) -> Result<MicrosoftAzureBuilder, BucketError> {
    let key = credentials_key(bucket);
    if let Some(text) = credentials {
        let file = CredentialsFile::parse(text, key)?;
        let account_key = file.account_key.ok_or_else(|| lacking(key, "accountkey"))?;
        return Ok(builder.with_access_key(account_key.expose()));
    }
    match &azure.credential {
        Some(bucket::AzureCredential::Key(secret)) => Ok(builder.with_access_key(secret.expose())),
        Some(bucket::AzureCredential::Client {
            client,
            tenant,
            secret,
        }) => Ok(builder.with_client_secret_authorization(client, secret.expose(), tenant)),
        None => Err(lacking(key, "accountkey")),
    }
}
