//! The bucket that content is kept in (`storage.s3`, `storage.gcs`, `storage.azure`).

mod azure;
mod credentials;
mod redirect;
mod s3;

use std::collections::BTreeMap;
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use url::Url;

use super::{Error, MaxSize, file};
use crate::secret::Secret;
pub use credentials::CredentialsType;
pub use redirect::{RedirectMode, RedirectSettings};

/// The default size of the parts of an upload, in bytes.
pub const PART_SIZE: u64 = 16 << 20;
/// The smallest part that stores accept, in bytes.
const SMALLEST_PART: u64 = 5 << 20;
/// The largest part that is held in memory, in bytes.
const LARGEST_PART: u64 = 64 << 20;

/// The bucket and the access to it.
#[derive(Clone, Debug, PartialEq)]
pub struct BucketSettings {
    /// The store, with the credentials for it.
    pub provider: Provider,
    /// The name of the bucket or container.
    pub name: String,
    /// The prefix of all keys, without a slash at either end; may be empty.
    pub root: String,
    /// The size of the parts of an upload, in bytes.
    pub part_size: u64,
    /// The source of the credentials.
    pub credentials: CredentialsType,
    /// The limit for the content that mirrors upload, in bytes.
    pub max_size: Option<u64>,
    /// A file with the credentials, which go before those of the configuration.
    pub credentials_file: Option<PathBuf>,
    /// A PEM file of further CAs.
    pub ca_file: Option<PathBuf>,
    /// The store's certificate is not checked.
    pub skip_verify: bool,
    /// The redirects of clients to the bucket; `None`: there are none.
    pub redirect: Option<RedirectSettings>,
}

/// A kind of object storage.
#[derive(Clone, Debug, PartialEq)]
pub enum Provider {
    /// Amazon S3, or a store with the same API.
    S3(S3),
    /// Google Cloud Storage.
    Gcs {
        /// The key of a service account; empty if the credentials file has it.
        credentials: BTreeMap<String, Secret>,
    },
    /// Azure Blob Storage.
    Azure(Azure),
}

/// The settings of S3.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct S3 {
    /// The access key and its secret.
    pub keys: Option<S3Keys>,
    /// The region; empty with an endpoint that has none.
    pub region: String,
    /// The address of a store that is not Amazon's.
    pub endpoint: Option<Url>,
    /// The bucket is part of the path of URLs.
    pub path_style: bool,
    /// Objects are encrypted at the store.
    pub encrypt: bool,
    /// The KMS key that encrypts objects.
    pub key_id: Option<String>,
    /// The storage class of new objects.
    pub storage_class: Option<String>,
}

/// An access key of S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Keys {
    /// The access key.
    pub access: String,
    /// The secret key.
    pub secret: Secret,
    /// The session token of temporary keys.
    pub token: Option<Secret>,
}

/// The settings of Azure.
#[derive(Clone, Debug, PartialEq)]
pub struct Azure {
    /// The storage account.
    pub account: String,
    /// The address of the store.
    pub service: Url,
    /// The credential; `None` if the credentials file has it.
    pub credential: Option<AzureCredential>,
}

/// A credential of Azure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AzureCredential {
    /// The key of the storage account.
    Key(Secret),
    /// The secret of an application.
    Client {
        /// The ID of the application.
        client: String,
        /// The ID of the directory.
        tenant: String,
        /// The secret.
        secret: Secret,
    },
}

impl BucketSettings {
    /// Returns the bucket of a configuration, if one is configured.
    ///
    /// # Errors
    /// More than one is configured, or a key is missing or does not fit.
    pub(super) fn new(storage: &file::Storage) -> Result<Option<Self>, Error> {
        let s3 = storage.s3.as_ref().map(s3::bucket);
        let gcs = storage.gcs.as_ref().map(Self::gcs);
        let azure = storage.azure.as_ref().map(azure::bucket);
        let mut buckets = [s3, gcs, azure].into_iter().flatten();
        let mut bucket = buckets.next().transpose()?;
        if buckets.next().is_some() {
            let reason = "more than one storage driver is configured: keep one of storage.s3, storage.gcs and \
                          storage.azure and remove the others";
            return Err(Error::invalid("storage", reason));
        }
        let redirect = redirect::settings(storage, bucket.as_ref())?;
        if let Some(bucket) = &mut bucket {
            bucket.redirect = redirect;
        }
        Ok(bucket)
    }

    /// Returns a hash of the place of the objects: provider, address, bucket and prefix. It is never 0.
    pub fn fingerprint(&self) -> u64 {
        let address = match &self.provider {
            Provider::S3(s3) => s3.endpoint.as_ref().map(Url::to_string),
            Provider::Gcs { .. } => None,
            Provider::Azure(azure) => Some(azure.service.to_string()),
        };
        let address = address.unwrap_or_default();
        let hash = Sha256::digest([self.section(), &address, &self.name, &self.root].join("\n"));
        hash.iter()
            .take(8)
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
            .max(1)
    }

    /// Returns the key of the section in the file.
    pub fn section(&self) -> &'static str {
        match self.provider {
            Provider::S3(_) => "storage.s3",
            Provider::Gcs { .. } => "storage.gcs",
            Provider::Azure(_) => "storage.azure",
        }
    }

    fn gcs(gcs: &file::Gcs) -> Result<Self, Error> {
        let credentials_file = path(gcs.key_file.as_deref());
        let secret = |(key, value): (&String, &file::GcsCredential)| (key.clone(), value.0.clone());
        let mut credentials: BTreeMap<_, _> = gcs.credentials.iter().map(secret).collect();
        // The type of a key of a service account is another one.
        let kind = credentials.get("type").map(Secret::expose);
        let kind = kind.and_then(CredentialsType::parse);
        if kind.is_some() {
            credentials.remove("type");
        }
        let kind = kind.unwrap_or_default();
        let has_secret = !credentials.is_empty() || credentials_file.is_some();
        let what = "the JSON file of a service account's key";
        kind.check(has_secret, "storage.gcs", "keyfile", what)?;
        Ok(Self {
            name: required(
                gcs.bucket.as_deref(),
                "storage.gcs.bucket",
                "the name of the bucket",
            )?,
            root: root(gcs.root_directory.as_deref(), "storage.gcs.rootdirectory")?,
            part_size: part_size(gcs.chunk_size, "storage.gcs.chunksize")?,
            credentials: kind,
            max_size: max_size(gcs.max_size, "storage.gcs.maxsize")?,
            credentials_file,
            ca_file: path(gcs.ca_file.as_deref()),
            skip_verify: false,
            redirect: None,
            provider: Provider::Gcs { credentials },
        })
    }
}

fn endpoint(text: &str, key: &str) -> Result<Url, Error> {
    let url: Option<Url> = text.parse().ok();
    let fits = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
    };
    url.filter(fits)
        .ok_or_else(|| Error::invalid(key, "must be an address like https://host[:port]"))
}

fn required(value: Option<&str>, key: &str, what: &str) -> Result<String, Error> {
    match value {
        None | Some("") => Err(Error::invalid(key, format!("must be set to {what}"))),
        Some(value) => Ok(value.to_owned()),
    }
}

fn no_credentials(key: &str, what: &str) -> Error {
    let reason = format!(
        "must be set to {what}, unless the credentials have type WorkloadIdentity or Anonymous: without that the server \
         does not ask the cloud's metadata service"
    );
    Error::invalid(key, reason)
}

fn path(value: Option<&str>) -> Option<PathBuf> {
    value.filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Returns a prefix without slashes at its ends.
fn root(directory: Option<&str>, key: &str) -> Result<String, Error> {
    let root = directory.unwrap_or_default().trim_matches('/');
    let plain = |part: &str| {
        let odd = |c: char| c.is_ascii_control() || "\\{}^%`\"<>~#|*?[]".contains(c);
        !matches!(part, "" | "." | "..") && !part.contains(odd)
    };
    if root.is_empty() || root.split('/').all(plain) {
        return Ok(root.to_owned());
    }
    Err(Error::invalid(
        key,
        "must be a path without empty parts, . and .., and without special characters",
    ))
}

fn part_size(size: Option<u64>, key: &str) -> Result<u64, Error> {
    match size {
        None => Ok(PART_SIZE),
        Some(size) if size < SMALLEST_PART => Err(Error::invalid(
            key,
            format!("must be at least {SMALLEST_PART}, the least that stores accept"),
        )),
        Some(size) => Ok(size.min(LARGEST_PART)),
    }
}

/// Returns the limit in bytes; a bucket has no size that a percentage could be of.
fn max_size(size: Option<MaxSize>, key: &str) -> Result<Option<u64>, Error> {
    match size {
        None => Ok(None),
        Some(MaxSize::Bytes(bytes)) => Ok(Some(bytes)),
        Some(MaxSize::Percent(_)) => Err(Error::invalid(
            key,
            "must be a quantity of bytes like 2Ti: a bucket has no size that a percentage could be of",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;
    use test_case::test_case;

    fn bucket(yaml: &str) -> Result<Option<BucketSettings>, Error> {
        BucketSettings::new(&File::parse(&format!("storage: {yaml}")).unwrap().storage)
    }

    fn s3(yaml: &str) -> S3 {
        let yaml = format!("{{s3: {{bucket: b, accesskey: a, secretkey: s, {yaml}}}}}");
        match bucket(&yaml).unwrap().unwrap().provider {
            Provider::S3(s3) => s3,
            other => panic!("{other:?}"),
        }
    }

    /// The endpoint takes its scheme from `secure`, and decides the style of URLs as in Distribution 2.8.
    #[test_case("region: r" => (None, false); "Amazon")]
    #[test_case("regionendpoint: 'http://a:1'" => (Some("http://a:1/".into()), true); "a scheme")]
    #[test_case("regionendpoint: 'a:1', secure: false" => (Some("http://a:1/".into()), true); "plain")]
    #[test_case("regionendpoint: 'a:1'" => (Some("https://a:1/".into()), true); "no scheme")]
    #[test_case("regionendpoint: 'a:1', forcepathstyle: false" => (Some("https://a:1/".into()), false); "by host")]
    fn s3_endpoint_and_style(yaml: &str) -> (Option<String>, bool) {
        let s3 = s3(yaml);
        (s3.endpoint.map(String::from), s3.path_style)
    }

    /// A key that is missing or that the server lacks the meaning of is named.
    #[test_case("{s3: {region: r, accesskey: a, secretkey: s}}" => "storage.s3.bucket")]
    #[test_case("{s3: {bucket: b, accesskey: a, secretkey: s}}" => "storage.s3.region")]
    #[test_case("{s3: {bucket: b, region: r}}" => "storage.s3.accesskey")]
    #[test_case("{s3: {bucket: b, region: r, accesskey: a}}" => "storage.s3.secretkey")]
    #[test_case("{s3: {bucket: b, region: r, secretkey: a}}" => "storage.s3.accesskey"; "no access key")]
    #[test_case("{s3: {bucket: b, region: r, accesskey: a, secretkey: s, accelerate: true}}" => "storage.s3.accelerate")]
    #[test_case("{s3: {bucket: b, region: r, accesskey: a, secretkey: s, usedualstack: true}}" => "storage.s3.usedualstack")]
    #[test_case("{s3: {bucket: b, region: r, accesskey: a, secretkey: s, v2auth: true}}" => "storage.s3.v2auth")]
    #[test_case("{s3: {bucket: b, region: r, accesskey: a, secretkey: s, v4auth: false}}" => "storage.s3.v4auth")]
    #[test_case("{s3: {bucket: b, region: r, accesskey: a, secretkey: s, objectacl: public-read}}" => "storage.s3.objectacl")]
    #[test_case("{s3: {bucket: b, region: r, accesskey: a, secretkey: s, chunksize: 1}}" => "storage.s3.chunksize")]
    #[test_case("{s3: {bucket: b, region: r, accesskey: a, secretkey: s, rootdirectory: a/../b}}" => "storage.s3.rootdirectory")]
    #[test_case("{s3: {bucket: b, regionendpoint: 'ftp://x', accesskey: a, secretkey: s}}" => "storage.s3.regionendpoint")]
    #[test_case("{s3: {bucket: b, region: r, accesskey: a, secretkey: s, maxsize: 90%}}" => "storage.s3.maxsize")]
    #[test_case("{gcs: {bucket: b}}" => "storage.gcs.keyfile")]
    #[test_case("{gcs: {bucket: b, credentials: {type: Secret}}}" => "storage.gcs.keyfile"; "type Secret of gcs")]
    #[test_case("{gcs: {bucket: b, keyfile: /k, credentials: {type: Anonymous}}}" => "storage.gcs.credentials.type")]
    #[test_case("{s3: {bucket: b, region: r, credentials: {type: Secret}}}" => "storage.s3.accesskey"; "type Secret of s3")]
    #[test_case("{s3: {bucket: b, region: r, accesskey: a, secretkey: s, credentials: {type: WorkloadIdentity}}}" => "storage.s3.credentials.type")]
    #[test_case("{s3: {bucket: b, region: r, credentialsfile: /k, credentials: {type: Anonymous}}}" => "storage.s3.credentials.type"; "a file")]
    #[test_case("{azure: {accountname: a, container: c, credentials: {type: Secret}}}" => "storage.azure.accountkey"; "type Secret of azure")]
    #[test_case("{azure: {accountname: a, container: c, accountkey: k, credentials: {type: WorkloadIdentity}}}" => "storage.azure.credentials.type"; "a key of azure")]
    #[test_case("{azure: {accountname: a, container: c, credentials: {type: Managed}}}" => "storage.azure.credentials.type"; "another type")]
    #[test_case("{gcs: {keyfile: /k}}" => "storage.gcs.bucket")]
    #[test_case("{azure: {accountname: a, container: c}}" => "storage.azure.accountkey")]
    #[test_case("{azure: {accountname: a, container: c, credentials: {type: default_credentials}}}" => "storage.azure.credentials.type")]
    #[test_case("{azure: {container: c, accountkey: k}}" => "storage.azure.accountname")]
    #[test_case("{azure: {accountname: a, container: c, accountkey: k}, gcs: {bucket: b, keyfile: /k}}" => "storage"; "two")]
    fn bucket_mistakes_name_the_key(yaml: &str) -> String {
        match bucket(yaml).unwrap_err() {
            Error::Invalid { key, .. } | Error::Refused { key, .. } => key,
            other => panic!("{other}"),
        }
    }

    /// Each store takes each source of credentials.
    #[test_case("s3: {bucket: b, region: r, credentials: {type: TYPE}}")]
    #[test_case("gcs: {bucket: b, credentials: {type: TYPE}}")]
    #[test_case("azure: {accountname: a, container: c, credentials: {type: TYPE}}")]
    fn credentials_type_needs_no_secret(yaml: &str) {
        for kind in [CredentialsType::WorkloadIdentity, CredentialsType::Anonymous] {
            let yaml = format!("{{{}}}", yaml.replace("TYPE", kind.as_str()));
            assert_eq!(bucket(&yaml).unwrap().unwrap().credentials, kind);
        }
    }

    /// Values that mean the default are accepted.
    #[test]
    fn s3_defaults_are_accepted_as_values() {
        let yaml = "region: r, accelerate: false, usedualstack: false, v4auth: true, objectacl: private, \
                    storageclass: standard";
        assert_eq!(s3(yaml), s3("region: r"));
    }
}
