//! The bucket of an object store that content is kept in.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{
    KubeSchema,
    core::{Reason, Rule},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{rules, schema, upstream::CaBundleReference};

/// A bucket, and the access to it: a union of s3, gcs and azure.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.s3), has(self.gcs), has(self.azure)].filter(isSet, isSet).size() == 1")
        .message("must have exactly one of s3, gcs and azure: set one, and remove the others"),
    validation = no_bundle_without_https(),
    validation = no_redirect_without_signature(),
    validation = Rule::new("!has(self.gcs) || !has(self.redirect) || !has(self.redirect.endpoint)")
        .message("must not be set with gcs, whose signatures name the store: remove it")
        .field_path(".redirect.endpoint")
        .reason(Reason::FieldValueForbidden)
)]
pub struct ObjectStore {
    /// A bucket of Amazon S3, or of a store with its API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Bucket>,

    /// A bucket of Google Cloud Storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gcs: Option<GcsBucket>,

    /// A container of Azure Blob Storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub azure: Option<AzureBucket>,

    /// The credentials for the bucket.
    pub credentials: BucketCredentials,

    /// The verification of the store's certificate. Absent: against the system's CA certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<BucketTls>,

    /// Redirects of clients to the bucket. Absent: the servers send all content themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<BucketRedirect>,
    /// The maximum size of the content that the mirror uploads to the bucket, such as `2Ti`: the least recently used content
    /// is evicted, and content expires with cache.ttl. cache.maxSize is that of the local tier. Absent: the mirror deletes
    /// nothing from the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::quantity())]
    #[schemars(schema_with = "schema::quantity")]
    pub max_size: Option<Quantity>,
}

/// A bucket with the API of Amazon S3.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.region) || has(self.endpoint)")
        .message("must be set to the region of the bucket, unless endpoint is set")
        .field_path(".region")
        .reason(Reason::FieldValueRequired)
)]
pub struct S3Bucket {
    /// The name of the bucket.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = rules::bucket_name())]
    pub bucket: String,

    /// The beginning of the keys of all objects; empty for a bucket that Distribution filled without `rootdirectory`.
    /// Default: the mirror's namespace and name, as `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = rules::key_prefix())]
    pub prefix: Option<String>,

    /// The region of the bucket. Required without endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = rules::region())]
    pub region: Option<String>,

    /// The URL of a store that is not Amazon's: `http://` or `https://`, host, optional port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(validation = rules::store_url())]
    pub endpoint: Option<String>,

    /// Puts the name of the bucket into the path of URLs, and not into the host name. Absent: true with endpoint, and
    /// false without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,

    /// The encryption of new objects by the store. Absent: the default of the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<S3Encryption>,

    /// The storage class of new objects, such as `STANDARD_IA`. Absent: that of the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = rules::storage_class())]
    pub storage_class: Option<String>,
}

/// The encryption of objects by the store: a union with the discriminator `type`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'KMS' || has(self.kmsKeyID)")
        .message("must be set with type KMS: the ID or the ARN of the key")
        .field_path(".kmsKeyID")
        .reason(Reason::FieldValueRequired),
    validation = Rule::new("self.type == 'KMS' || !has(self.kmsKeyID)")
        .message("goes with type KMS only: remove it, or use that type")
        .field_path(".kmsKeyID")
        .reason(Reason::FieldValueForbidden)
)]
pub struct S3Encryption {
    /// `AES256` (a key of the store) or `KMS` (the key of kmsKeyID).
    pub r#type: S3EncryptionType,

    /// With type KMS: the ID or the ARN of the key.
    #[serde(rename = "kmsKeyID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = rules::key_id())]
    pub kms_key_id: Option<String>,
}

/// The key that a store encrypts objects with.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum S3EncryptionType {
    /// A key of the store.
    AES256,
    /// A key of a key management service.
    KMS,
}

/// A bucket of Google Cloud Storage.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GcsBucket {
    /// The name of the bucket.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = rules::bucket_name())]
    pub bucket: String,

    /// The beginning of the keys of all objects; empty for a bucket that Distribution filled without `rootdirectory`.
    /// Default: the mirror's namespace and name, as `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = rules::key_prefix())]
    pub prefix: Option<String>,
}

/// A container of Azure Blob Storage.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AzureBucket {
    /// The name of the storage account.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = rules::account_name())]
    pub account_name: String,

    /// The name of the container.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = rules::bucket_name())]
    pub container: String,

    /// The beginning of the keys of all objects; empty for a container that Distribution filled without `rootdirectory`.
    /// Default: the mirror's namespace and name, as `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = rules::key_prefix())]
    pub prefix: Option<String>,

    /// The URL of the store: `http://` or `https://`, host, optional port and path. Default:
    /// `https://ACCOUNT.blob.core.windows.net`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(validation = rules::store_url())]
    pub endpoint: Option<String>,
}

/// The credentials for a bucket: a union with the discriminator `type`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'Secret' || has(self.secretRef)")
        .message("must be set with type Secret: the name of the Secret with the credentials")
        .field_path(".secretRef")
        .reason(Reason::FieldValueRequired),
    validation = Rule::new("self.type == 'Secret' || !has(self.secretRef)")
        .message("goes with type Secret only: remove it, or use that type")
        .field_path(".secretRef")
        .reason(Reason::FieldValueForbidden)
)]
pub struct BucketCredentials {
    /// `Secret` (the Secret of secretRef), `WorkloadIdentity` (the identity that the cloud gives the Pods, by the
    /// annotations of serviceAccount) or `Anonymous` (requests without a signature).
    #[serde(default)]
    pub r#type: BucketCredentialsType,

    /// With type Secret: the Secret with the credentials. Running servers load changed credentials without a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<BucketSecretReference>,
}

/// The source of the credentials for a bucket.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BucketCredentialsType {
    /// A Secret.
    #[default]
    Secret,
    /// The identity that the cloud gives the Pods.
    WorkloadIdentity,
    /// No credentials.
    Anonymous,
}

/// Redirects of clients to the bucket.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BucketRedirect {
    /// `Never`, or `Large`: clients that request a blob of at least minSize are redirected to the bucket, by a URL that is
    /// valid for a minute. The keys of a Secret sign it, or with s3 a workload identity.
    #[serde(default)]
    pub mode: BucketRedirectMode,

    /// With mode Large: the size of the smallest blob whose clients are redirected. Default: `16Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::quantity())]
    #[schemars(schema_with = "schema::quantity")]
    pub min_size: Option<Quantity>,

    /// The URL of the store for clients: `http://` or `https://`, host, optional port. Absent: that of the servers. Not with
    /// gcs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(validation = rules::store_url())]
    pub endpoint: Option<String>,
}

/// The blobs whose clients are redirected to the bucket.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BucketRedirectMode {
    /// None.
    #[default]
    Never,
    /// Large ones.
    Large,
}

/// A Secret with the credentials for a bucket.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BucketSecretReference {
    /// Name of a Secret in the mirror's namespace. For s3, it has the keys `accesskey` and `secretkey`, and optionally
    /// `sessiontoken`; or `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`. For gcs, it has the key
    /// `keyfile` or `key.json`: the JSON key of a service account. For azure, it has the key `accountkey`. The letter case
    /// of these keys does not matter.
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub name: String,
}

/// The verification of a store's certificate.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BucketTls {
    /// Certificates, in PEM, of the CAs to trust for the store in addition to the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle_ref: Option<CaBundleReference>,
}

impl ObjectStore {
    /// Returns the prefix of the keys as the spec has it, whatever the provider.
    pub fn prefix(&self) -> Option<&str> {
        let s3 = self.s3.iter().map(|s3| &s3.prefix);
        let gcs = self.gcs.iter().map(|gcs| &gcs.prefix);
        let azure = self.azure.iter().map(|azure| &azure.prefix);
        s3.chain(gcs).chain(azure).flatten().next().map(String::as_str)
    }

    /// Returns the reference to CA certificates, if the spec has one.
    pub fn ca_bundle_ref(&self) -> Option<&CaBundleReference> {
        self.tls.as_ref()?.ca_bundle_ref.as_ref()
    }
}

fn no_bundle_without_https() -> Rule {
    let plain = |store: &str| {
        format!(
            "has(self.{store}) && has(self.{store}.endpoint) && self.{store}.endpoint.startsWith('http://')"
        )
    };
    Rule::new(format!(
        "!has(self.tls) || !(({}) || ({}))",
        plain("s3"),
        plain("azure")
    ))
    .message("has no effect on an http:// endpoint: use https://, or remove tls")
    .field_path(".tls")
    .reason(Reason::FieldValueForbidden)
}

/// Returns the rule that clients are redirected to a store that signs URLs for them.
fn no_redirect_without_signature() -> Rule {
    Rule::new(
        "!has(self.redirect) || self.redirect.mode != 'Large' \
         || self.credentials.type == 'Secret' || (has(self.s3) && self.credentials.type == 'WorkloadIdentity')",
    )
    .message("Large needs credentials that sign URLs, of type Secret, or with s3 WorkloadIdentity: use Never")
    .field_path(".redirect.mode")
    .reason(Reason::FieldValueForbidden)
}
