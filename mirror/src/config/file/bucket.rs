//! `storage.s3`, `storage.gcs` and `storage.azure`: the keys of Distribution's drivers for object storage.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use super::{IgnoredKey, Masked};
use crate::config::bucket::CredentialsType;
use crate::config::overlay::{Overlay, section};
use crate::config::size::MaxSize;
use crate::secret::Secret;

section! {
    /// A bucket of Amazon S3, or of a store with the same API.
    S3 {
        /// The access key; required, unless `credentialsfile` has it.
        "accesskey" => access_key: Option<String>,
        /// The secret key of `accesskey`.
        "secretkey" => secret_key: Option<Masked>,
        /// The session token of temporary keys.
        "sessiontoken" => session_token: Option<Masked>,
        /// A file with `accesskey`, `secretkey` and `sessiontoken` as YAML or JSON; read again when it changes.
        "credentialsfile" => credentials_file: Option<String>,
        /// The source of the credentials.
        "credentials" => credentials: S3Credentials,
        /// The region; required unless `regionendpoint` is set.
        "region" => region: Option<String>,
        /// The address of a store that is not Amazon's, `http(s)://host[:port]`.
        "regionendpoint" => region_endpoint: Option<String>,
        /// Puts the name of the bucket into the path of URLs in place of the host name.
        "forcepathstyle" => force_path_style: Option<bool>,
        /// The name of the bucket.
        "bucket" => bucket: Option<String>,
        /// The prefix of all objects.
        "rootdirectory" => root_directory: Option<String>,
        /// Encrypts objects at the store: with its own key, or with `keyid`.
        "encrypt" => encrypt: bool,
        /// The KMS key that encrypts objects.
        "keyid" => key_id: Option<String>,
        /// Uses HTTPS where `regionendpoint` has no scheme.
        "secure" => secure: Option<bool>,
        /// Disables the check of the store's certificate.
        "skipverify" => skip_verify: bool,
        /// A PEM file of further CAs that may issue the store's certificate; read again when it changes.
        "cafile" => ca_file: Option<String>,
        /// The limit for the content that mirrors upload: the least recently used goes beyond it, as a quantity like `2Ti`.
        "maxsize" => max_size: Option<MaxSize>,
        /// Signs requests with version 4 of the signature.
        "v4auth" => v4_auth: Option<bool>,
        /// Signs requests with version 2 of the signature.
        "v2auth" => v2_auth: bool,
        /// The size of the parts of an upload, in bytes.
        "chunksize" => chunk_size: Option<u64>,
        /// The storage class of new objects.
        "storageclass" => storage_class: Option<String>,
        /// The canned ACL of new objects.
        "objectacl" => object_acl: Option<String>,
        /// Uses the endpoint of S3 Transfer Acceleration.
        "accelerate" => accelerate: bool,
        /// Uses endpoints that speak IPv4 and IPv6.
        "usedualstack" => use_dual_stack: bool,
        /// Uses endpoints with FIPS 140 modules.
        "usefipsendpoint" => use_fips_endpoint: bool,
        /// The size from which a copy is done in parts.
        "multipartcopythresholdsize" => multipart_copy_threshold_size: IgnoredKey,
        /// The size of the parts of a copy.
        "multipartcopychunksize" => multipart_copy_chunk_size: IgnoredKey,
        /// The number of parts that are copied at once.
        "multipartcopymaxconcurrency" => multipart_copy_max_concurrency: IgnoredKey,
        /// The `User-Agent` of requests.
        "useragent" => user_agent: IgnoredKey,
        /// The log of the SDK.
        "loglevel" => log_level: IgnoredKey,
        /// The address of the store for clients, if `storage.redirect.endpoint` is not set.
        "redirectendpoint" => redirect_endpoint: Option<String>,
    }
}

section! {
    /// The source of the credentials for a bucket of S3.
    S3Credentials {
        /// The source: the keys, the identity of the process, or none.
        "type" => kind: Option<CredentialsType>,
    }
}

section! {
    /// A bucket of Google Cloud Storage.
    Gcs {
        /// The name of the bucket.
        "bucket" => bucket: Option<String>,
        /// The JSON file of a service account's key; read again when it changes.
        "keyfile" => key_file: Option<String>,
        /// The content of a service account's key, in place of `keyfile`; or `type: WorkloadIdentity` or `type: Anonymous`.
        "credentials" => credentials: BTreeMap<String, GcsCredential>,
        /// The prefix of all objects.
        "rootdirectory" => root_directory: Option<String>,
        /// A PEM file of further CAs that may issue the store's certificate; read again when it changes.
        "cafile" => ca_file: Option<String>,
        /// The limit for the content that mirrors upload: the least recently used goes beyond it, as a quantity like `2Ti`.
        "maxsize" => max_size: Option<MaxSize>,
        /// The size of the parts of an upload, in bytes.
        "chunksize" => chunk_size: Option<u64>,
        /// The number of requests at once.
        "maxconcurrency" => max_concurrency: IgnoredKey,
        /// The `User-Agent` of requests.
        "useragent" => user_agent: IgnoredKey,
    }
}

/// A part of a service account's key, or the type of the credentials. It is never printed unless it is the type.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct GcsCredential(pub Secret);

impl Serialize for GcsCredential {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match CredentialsType::parse(self.0.expose()) {
            Some(kind) => kind.serialize(serializer),
            None => Masked(self.0.clone()).serialize(serializer),
        }
    }
}

impl Overlay for GcsCredential {
    const VALUES: &'static str = Masked::VALUES;
}

section! {
    /// A container of Azure Blob Storage.
    Azure {
        /// The name of the storage account.
        "accountname" => account_name: Option<String>,
        /// The key of the storage account; required, unless `credentials` or `credentialsfile` is set.
        "accountkey" => account_key: Option<Masked>,
        /// A file with `accountkey` as YAML or JSON; read again when it changes.
        "credentialsfile" => credentials_file: Option<String>,
        /// An identity of Microsoft Entra.
        "credentials" => credentials: AzureCredentials,
        /// The name of the container.
        "container" => container: Option<String>,
        /// The domain of the cloud; `core.windows.net` if not set.
        "realm" => realm: Option<String>,
        /// The address of the store, in place of the one that `accountname` and `realm` make.
        "serviceurl" => service_url: Option<String>,
        /// The prefix of all objects.
        "rootdirectory" => root_directory: Option<String>,
        /// Disables the check of the store's certificate.
        "skipverify" => skip_verify: bool,
        /// A PEM file of further CAs that may issue the store's certificate; read again when it changes.
        "cafile" => ca_file: Option<String>,
        /// The limit for the content that mirrors upload: the least recently used goes beyond it, as a quantity like `2Ti`.
        "maxsize" => max_size: Option<MaxSize>,
        /// Address and key of the account as one text.
        "connectionstring" => connection_string: IgnoredKey,
        /// The number of attempts of a request.
        "max_retries" => max_retries: IgnoredKey,
        /// The pause between two attempts.
        "retry_delay" => retry_delay: IgnoredKey,
        /// The checks of a copy.
        "copy_status_poll_max_retry" => copy_poll_retry: IgnoredKey,
        /// The pause between two checks of a copy.
        "copy_status_poll_delay" => copy_poll_delay: IgnoredKey,
    }
}

section! {
    /// An identity of Microsoft Entra.
    AzureCredentials {
        /// The kind of identity: `client_secret`, `shared_key`, `Secret`, `WorkloadIdentity` or `Anonymous`.
        "type" => kind: Option<String>,
        /// The ID of the application.
        "clientid" => client_id: Option<String>,
        /// The ID of the directory.
        "tenantid" => tenant_id: Option<String>,
        /// The secret of the application.
        "secret" => secret: Option<Masked>,
    }
}
