//! The client of the store.

mod azure;
mod gcs;
mod s3;
mod signer;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::signer::Signer;
use object_store::{Attribute, Attributes, ObjectStore, RetryConfig};

use super::connector::Connector;
use super::credentials::read;
use super::error::BucketError;
use super::objects::{FIRST_LINK, OWN, first_link};
use crate::config::bucket::{BucketSettings, CredentialsType, Provider, S3};
use crate::store::Link;
use crate::tls::TrustedCertificates;
use signer::RedirectSigner;

/// A client of the store, built for one version of the credentials.
pub(super) struct Client {
    stores: Stores,
    attributes: Attributes,
    fingerprint: u64,
}

/// The interfaces of a store that share its credentials.
struct Stores {
    objects: Arc<dyn ObjectStore>,
    lists: Arc<dyn PaginatedListStore>,
    multipart: Arc<dyn MultipartStore>,
    /// The signer of URLs for clients, if the settings have redirects.
    signer: Option<RedirectSigner>,
    /// With S3 and credentials: the signer and the HTTP client of the listing of uploads.
    uploads: Option<(Arc<dyn Signer>, reqwest::Client)>,
}

/// Checks the files that a bucket's configuration names.
///
/// # Errors
/// A file is missing or does not fit.
pub(crate) fn check(bucket: &BucketSettings) -> Result<(), BucketError> {
    Client::new(bucket).map(drop)
}

/// Checks the contents of the files that a bucket's configuration names. The identity of a workload is that of the server,
/// and is not checked.
///
/// # Errors
/// The contents do not fit; the error repeats nothing of them.
pub fn check_contents(
    bucket: &BucketSettings,
    credentials: Option<String>,
    authorities: Option<String>,
) -> Result<(), BucketError> {
    let files = Files {
        credentials,
        authorities,
    };
    let mut bucket = bucket.clone();
    if bucket.credentials == CredentialsType::WorkloadIdentity {
        bucket.credentials = CredentialsType::Anonymous;
    }
    Client::from_files(&bucket, &files).map(drop)
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
        let failed = |reason: String| invalid(bucket, reason);
        let trusted = trusted(files.authorities.as_deref()).map_err(failed)?;
        let connector = Connector::new(trusted, bucket.skip_verify).map_err(failed)?;
        let credentials = files.credentials.as_deref();
        let stores = match &bucket.provider {
            Provider::S3(settings) => s3::stores(bucket, settings, credentials, &connector)?,
            Provider::Gcs { .. } => gcs::stores(bucket, credentials, connector)?,
            Provider::Azure(settings) => azure::stores(bucket, settings, credentials, &connector)?,
        };
        let mut hasher = DefaultHasher::new();
        (&files.credentials, &files.authorities).hash(&mut hasher);
        Ok(Self {
            stores,
            attributes: attributes(&bucket.provider),
            fingerprint: hasher.finish(),
        })
    }

    /// Returns the objects.
    pub(super) fn objects(&self) -> &dyn ObjectStore {
        &*self.stores.objects
    }

    /// Returns the listings of objects.
    pub(super) fn lists(&self) -> &dyn PaginatedListStore {
        &*self.stores.lists
    }

    /// Returns the uploads in parts.
    pub(super) fn multipart(&self) -> &dyn MultipartStore {
        &*self.stores.multipart
    }

    /// Returns the signer of URLs for clients, if the settings have redirects.
    pub(super) fn signer(&self) -> Option<&RedirectSigner> {
        self.stores.signer.as_ref()
    }

    /// Returns a hash of the files that the client was built from.
    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Returns the signer and the HTTP client of a listing of uploads in parts; `None` where the store is not S3, or
    /// nothing is signed.
    pub(super) fn uploads(&self) -> Option<(&dyn Signer, &reqwest::Client)> {
        let uploads = self.stores.uploads.as_ref();
        uploads.map(|(signer, http)| (&**signer, http))
    }

    /// Returns the attributes of new content that is uploaded for a link. If it `is_own`, a mirror may delete it later.
    pub(super) fn content_attributes(&self, link: &Link, is_own: bool) -> Attributes {
        let mut attributes = self.attributes();
        attributes.insert(FIRST_LINK, first_link(link).into());
        if is_own {
            attributes.insert(OWN, "1".into());
        }
        attributes
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
pub(super) fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        retry_timeout: Duration::ZERO,
        ..RetryConfig::default()
    }
}

fn invalid(bucket: &BucketSettings, reason: String) -> BucketError {
    BucketError::Invalid {
        key: bucket.section().to_owned(),
        reason,
    }
}

/// Returns the error of a key that the crate refuses: its own errors repeat parts of the key.
fn unusable_key(bucket: &BucketSettings, what: &str) -> BucketError {
    invalid(
        bucket,
        format!("{what} cannot be used: store it again as the cloud issued it"),
    )
}

/// Returns the error of an identity that the environment of the process lacks.
fn no_identity(bucket: &BucketSettings, reason: String) -> BucketError {
    BucketError::Invalid {
        key: format!("{}.credentials.type", bucket.section()),
        reason,
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
