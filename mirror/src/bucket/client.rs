//! The client of the store.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::MultipartStore;
use object_store::{Attribute, Attributes, ClientOptions, ObjectStore, RetryConfig};

use super::connector::Connector;
use super::credentials::{CredentialsFile, read};
use super::error::BucketError;
use crate::config::bucket::{Azure, AzureCredential, BucketSettings, Provider, S3};
use crate::tls::TrustedCertificates;

/// A client of the store, built for one version of the credentials.
pub(super) struct Client {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) multipart: Arc<dyn MultipartStore>,
    attributes: Attributes,
    fingerprint: u64,
}

/// Checks the files that a bucket's configuration names.
///
/// # Errors
/// A file is missing or does not fit.
pub(crate) fn check(bucket: &BucketSettings) -> Result<(), BucketError> {
    Client::new(bucket).map(drop)
}

/// Checks the contents of the files that a bucket's configuration names.
///
/// # Errors
/// The contents do not fit; the error repeats nothing of them.
pub fn check_contents(
    bucket: &BucketSettings,
    credentials: String,
    authorities: Option<String>,
) -> Result<(), BucketError> {
    let files = Files {
        credentials: Some(credentials),
        authorities,
    };
    Client::from_files(bucket, &files).map(drop)
}

/// The files of a bucket, as read together.
struct Files {
    credentials: Option<String>,
    authorities: Option<String>,
}

impl Files {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// A file cannot be read.
    fn read(bucket: &BucketSettings) -> Result<Self, BucketError> {
        Ok(Self {
            credentials: bucket
                .credentials_file
                .as_deref()
                .map(|path| read(path, credentials_key(bucket)))
                .transpose()?,
            authorities: bucket
                .ca_file
                .as_deref()
                .map(|path| read(path, "cafile of the bucket"))
                .transpose()?,
        })
    }
}

impl Client {
    /// Creates a client.
    ///
    /// # Errors
    /// A file cannot be read, or a value does not fit.
    pub(super) fn new(bucket: &BucketSettings) -> Result<Self, BucketError> {
        Self::from_files(bucket, &Files::read(bucket)?)
    }

    fn from_files(bucket: &BucketSettings, files: &Files) -> Result<Self, BucketError> {
        let invalid = |reason: String| BucketError::Invalid {
            key: bucket.section().to_owned(),
            reason,
        };
        let trusted = trusted(files.authorities.as_deref()).map_err(invalid)?;
        let connector = Connector::new(trusted, bucket.skip_verify).map_err(invalid)?;
        let credentials = files.credentials.as_deref();
        let failed = |error: object_store::Error| invalid(error.to_string());
        // The crate's errors repeat parts of these keys.
        let failed_key = |what: &str| {
            invalid(format!(
                "{what} cannot be used: store it again as the cloud issued it"
            ))
        };
        let (objects, multipart): (Arc<dyn ObjectStore>, Arc<dyn MultipartStore>) = match &bucket.provider {
            Provider::S3(s3) => {
                let built = Arc::new(
                    self::s3(bucket, s3, credentials)?
                        .with_http_connector(connector)
                        .build()
                        .map_err(failed)?,
                );
                (built.clone(), built)
            }
            Provider::Gcs { .. } => {
                let built = Arc::new(
                    gcs(bucket, credentials)
                        .with_http_connector(connector)
                        .build()
                        .map_err(|_| failed_key("the JSON key of the service account"))?,
                );
                (built.clone(), built)
            }
            Provider::Azure(azure) => {
                let built = self::azure(bucket, azure, credentials)?;
                let built = built
                    .with_http_connector(connector)
                    .build()
                    .map_err(|_| failed_key("the key of the storage account"))?;
                let built = Arc::new(built);
                (built.clone(), built)
            }
        };
        let mut hasher = DefaultHasher::new();
        (&files.credentials, &files.authorities).hash(&mut hasher);
        Ok(Self {
            objects,
            multipart,
            attributes: attributes(&bucket.provider),
            fingerprint: hasher.finish(),
        })
    }

    /// Returns a hash of the files that the client was built from.
    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Returns the attributes of new objects.
    pub(super) fn attributes(&self) -> Attributes {
        self.attributes.clone()
    }
}

fn credentials_key(bucket: &BucketSettings) -> &'static str {
    match bucket.provider {
        Provider::S3(_) => "storage.s3.credentialsfile",
        Provider::Gcs { .. } => "storage.gcs.keyfile",
        Provider::Azure(_) => "storage.azure.credentialsfile",
    }
}

fn trusted(authorities: Option<&str>) -> Result<Arc<TrustedCertificates>, String> {
    let system = TrustedCertificates::system();
    let Some(pem) = authorities else { return Ok(system) };
    let mut trusted = (*system).clone();
    trusted.add_pem(pem.as_bytes())?;
    Ok(Arc::new(trusted))
}

/// One attempt for each request: the callers know how often to try, and when.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        retry_timeout: Duration::ZERO,
        ..RetryConfig::default()
    }
}

fn s3(bucket: &BucketSettings, s3: &S3, credentials: Option<&str>) -> Result<AmazonS3Builder, BucketError> {
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
    let endpoint = s3.endpoint.as_ref();
    let is_plain = endpoint.is_some_and(|url| url.scheme() == "http");
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&bucket.name)
        .with_region(if s3.region.is_empty() {
            "us-east-1"
        } else {
            &s3.region
        })
        .with_access_key_id(access)
        .with_secret_access_key(secret.expose())
        .with_virtual_hosted_style_request(!s3.path_style)
        // TLS protects the payload already, and its hash would cost as much as the one of the digest.
        .with_unsigned_payload(!is_plain)
        .with_client_options(ClientOptions::new().with_allow_http(is_plain))
        .with_retry(no_retries());
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(s3_endpoint(endpoint, &bucket.name, s3.path_style));
    }
    if let Some(token) = token {
        builder = builder.with_token(token.expose());
    }
    if s3.encrypt {
        builder = encrypted(builder, s3.key_id.as_deref());
    }
    Ok(builder)
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
fn s3_endpoint(endpoint: &url::Url, bucket: &str, path_style: bool) -> String {
    let mut endpoint = endpoint.clone();
    if !path_style && let Some(host) = endpoint.host_str().map(|host| format!("{bucket}.{host}")) {
        // An IP address has no subdomains: the request then goes to the bucket's path after all.
        let _ = endpoint.set_host(Some(&host));
    }
    endpoint.as_str().trim_end_matches('/').to_owned()
}

fn gcs(bucket: &BucketSettings, credentials: Option<&str>) -> GoogleCloudStorageBuilder {
    let inline = || match &bucket.provider {
        Provider::Gcs { credentials } => {
            let plain = credentials
                .iter()
                .map(|(key, value)| (key.clone(), value.expose().into()));
            serde_json::Value::Object(plain.collect()).to_string()
        }
        _ => String::new(),
    };
    let key = credentials.map_or_else(inline, str::to_owned);
    GoogleCloudStorageBuilder::new()
        .with_bucket_name(&bucket.name)
        .with_client_options(ClientOptions::new().with_allow_http(key.contains("\"http://")))
        .with_service_account_key(key)
        .with_retry(no_retries())
}

fn azure(
    bucket: &BucketSettings,
    azure: &Azure,
    credentials: Option<&str>,
) -> Result<MicrosoftAzureBuilder, BucketError> {
    let key = credentials_key(bucket);
    let is_plain = azure.service.scheme() == "http";
    let builder = MicrosoftAzureBuilder::new()
        .with_account(&azure.account)
        .with_container_name(&bucket.name)
        .with_endpoint(azure.service.as_str().trim_end_matches('/').to_owned())
        .with_client_options(ClientOptions::new().with_allow_http(is_plain))
        .with_retry(no_retries());
    if let Some(text) = credentials {
        let file = CredentialsFile::parse(text, key)?;
        let account_key = file.account_key.ok_or_else(|| lacking(key, "accountkey"))?;
        return Ok(builder.with_access_key(account_key.expose()));
    }
    match &azure.credential {
        Some(AzureCredential::Key(secret)) => Ok(builder.with_access_key(secret.expose())),
        Some(AzureCredential::Client {
            client,
            tenant,
            secret,
        }) => Ok(builder.with_client_secret_authorization(client, secret.expose(), tenant)),
        None => Err(lacking(key, "accountkey")),
    }
}

fn lacking(key: &str, what: &str) -> BucketError {
    BucketError::Invalid {
        key: key.to_owned(),
        reason: format!("the file has no {what}"),
    }
}

fn attributes(provider: &Provider) -> Attributes {
    let mut attributes = Attributes::new();
    if let Provider::S3(S3 {
        storage_class: Some(class),
        ..
    }) = provider
    {
        attributes.insert(Attribute::StorageClass, class.clone().into());
    }
    attributes
}
