//! The client of Azure Blob Storage.

use std::sync::Arc;

use object_store::azure::{AzureCredential, MicrosoftAzureBuilder};
use object_store::{ClientOptions, StaticCredentialProvider};

use super::{Stores, credentials_key, lacking, no_identity, no_retries, unusable_key};
use crate::bucket::connector::Connector;
use crate::bucket::credentials::CredentialsFile;
use crate::bucket::error::BucketError;
use crate::bucket::identity;
use crate::config::bucket::{self, Azure, BucketSettings, CredentialsType};

/// Creates the client.
///
/// # Errors
/// A value or a file does not fit, or the process has no identity.
pub(super) fn stores(
    bucket: &BucketSettings,
    azure: &Azure,
    credentials: Option<&str>,
    connector: Connector,
) -> Result<Stores, BucketError> {
    let is_plain = azure.service.scheme() == "http";
    let builder = MicrosoftAzureBuilder::new()
        .with_account(&azure.account)
        .with_container_name(&bucket.name)
        .with_endpoint(azure.service.as_str().trim_end_matches('/').to_owned())
        .with_client_options(ClientOptions::new().with_allow_http(is_plain))
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
    let built = builder.with_http_connector(connector).build();
    let built = Arc::new(built.map_err(|_| unusable_key(bucket, "the key of the storage account"))?);
    Ok(Stores {
        objects: built.clone(),
        lists: built.clone(),
        multipart: built,
        signer: None,
        uploads: None,
    })
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
