//! The bucket of the effective configuration.

use super::text;
use crate::config::bucket::{
    Azure, AzureCredential, BucketSettings, CredentialsType, Provider, RedirectMode, S3,
};
use crate::config::size::BlobSize;
use crate::config::{MaxSize, file};
use crate::secret::Secret;

/// Returns the section of storage with the bucket, its secrets masked.
pub(super) fn storage(bucket: Option<&BucketSettings>) -> file::Storage {
    let mut storage = file::Storage::default();
    let Some(bucket) = bucket else { return storage };
    if let Some(redirect) = &bucket.redirect {
        storage.redirect = file::Redirect {
            disable: false,
            mode: Some(RedirectMode::Large),
            min_size: Some(BlobSize(redirect.min_size)),
            endpoint: redirect.endpoint.as_ref().map(ToString::to_string),
        };
    }
    match &bucket.provider {
        Provider::S3(settings) => storage.s3 = Some(s3(bucket, settings)),
        Provider::Gcs { credentials } => {
            let masked = |(key, value): (&String, &Secret)| (key.clone(), file::GcsCredential(value.clone()));
            let kind = bucket.credentials.as_str();
            let kind = (bucket.credentials != CredentialsType::Secret)
                .then(|| ("type".to_owned(), file::GcsCredential(Secret::new(kind))));
            storage.gcs = Some(file::Gcs {
                bucket: Some(bucket.name.clone()),
                root_directory: Some(bucket.root.clone()),
                key_file: bucket.credentials_file.as_deref().map(text),
                ca_file: bucket.ca_file.as_deref().map(text),
                credentials: credentials.iter().map(masked).chain(kind).collect(),
                chunk_size: Some(bucket.part_size),
                max_size: bucket.max_size.map(MaxSize::Bytes),
                ..file::Gcs::default()
            });
        }
        Provider::Azure(settings) => storage.azure = Some(azure(bucket, settings)),
    }
    storage
}

fn s3(bucket: &BucketSettings, s3: &S3) -> file::S3 {
    let masked = |secret: &Secret| file::Masked(secret.clone());
    let keys = s3.keys.as_ref();
    file::S3 {
        access_key: keys.map(|keys| keys.access.clone()),
        secret_key: keys.map(|keys| masked(&keys.secret)),
        session_token: keys.and_then(|keys| keys.token.as_ref()).map(masked),
        credentials_file: bucket.credentials_file.as_deref().map(text),
        credentials: file::S3Credentials {
            kind: Some(bucket.credentials),
        },
        region: Some(s3.region.clone()),
        region_endpoint: s3.endpoint.as_ref().map(ToString::to_string),
        force_path_style: Some(s3.path_style),
        bucket: Some(bucket.name.clone()),
        root_directory: Some(bucket.root.clone()),
        encrypt: s3.encrypt,
        key_id: s3.key_id.clone(),
        secure: Some(s3.endpoint.as_ref().is_none_or(|url| url.scheme() == "https")),
        skip_verify: bucket.skip_verify,
        ca_file: bucket.ca_file.as_deref().map(text),
        v4_auth: Some(true),
        chunk_size: Some(bucket.part_size),
        max_size: bucket.max_size.map(MaxSize::Bytes),
        storage_class: Some(s3.storage_class.clone().unwrap_or_else(|| "STANDARD".to_owned())),
        object_acl: Some("private".to_owned()),
        ..file::S3::default()
    }
}

fn azure(bucket: &BucketSettings, azure: &Azure) -> file::Azure {
    let mut written = file::Azure {
        account_name: Some(azure.account.clone()),
        credentials_file: bucket.credentials_file.as_deref().map(text),
        container: Some(bucket.name.clone()),
        service_url: Some(azure.service.to_string()),
        root_directory: Some(bucket.root.clone()),
        skip_verify: bucket.skip_verify,
        ca_file: bucket.ca_file.as_deref().map(text),
        max_size: bucket.max_size.map(MaxSize::Bytes),
        ..file::Azure::default()
    };
    match &azure.credential {
        None => written.credentials.kind = Some(bucket.credentials.as_str().to_owned()),
        Some(AzureCredential::Key(key)) => written.account_key = Some(file::Masked(key.clone())),
        Some(AzureCredential::Client {
            client,
            tenant,
            secret,
        }) => {
            written.credentials = file::AzureCredentials {
                kind: Some("client_secret".to_owned()),
                client_id: Some(client.clone()),
                tenant_id: Some(tenant.clone()),
                secret: Some(file::Masked(secret.clone())),
            };
        }
    }
    written
}
