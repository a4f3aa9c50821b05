//! Accepts the bucket of a spec: its place, and the credentials for it.

use crds::object_store::{BucketCredentialsType, BucketRedirect, BucketRedirectMode, S3EncryptionType};
use crds::{ObjectStore, RegistryMirror, conditions::Reason};
use kube::ResourceExt;
use mirror::config::bucket::{CredentialsType, RedirectMode};
use mirror::config::file::{
    Azure, AzureCredentials, Gcs, GcsCredential, Redirect, S3, S3Credentials, Storage,
};
use mirror::config::{Config, file::File};
use mirror::secret::Secret;
use serde_json::json;

use super::{Rejection, bundle, not_the_operators};
use crate::dereference::{Contents, Reference, References};

/// The file with the CAs of the store, in the servers' directory of files.
pub const CA_FILE: &str = "bucket-ca.crt";
/// The file with the credentials for the bucket, in the servers' directory of credentials.
pub const CREDENTIALS_FILE: &str = "bucket.json";

/// The names that a Secret may have for one value, without regard to letter case.
type Names = &'static [&'static str];
const ACCESS_KEY: Names = &["accesskey", "AWS_ACCESS_KEY_ID"];
const SECRET_KEY: Names = &["secretkey", "AWS_SECRET_ACCESS_KEY"];
const SESSION_TOKEN: Names = &["sessiontoken", "AWS_SESSION_TOKEN"];
const KEY_FILE: Names = &["keyfile", "key.json"];
const ACCOUNT_KEY: Names = &["accountkey"];

/// The bucket behind the local tier. Has no `Debug`, so that no credential gets into a log.
pub struct Bucket {
    section: Section,
    /// The source of the credentials, unless it is a Secret.
    identity: Option<CredentialsType>,
    redirect: Option<Redirect>,
    /// The credentials of a Secret, as servers read them.
    pub credentials: Option<Vec<u8>>,
    /// The CAs of the store, in PEM, next to the system's.
    pub bundle: Option<Vec<u8>>,
}

/// The keys of the servers' configuration, without the files.
enum Section {
    S3(S3),
    Gcs(Gcs),
    Azure(Azure),
}

impl Bucket {
    /// Returns the servers' section of the bucket, with the files in these directories.
    pub fn storage(&self, credentials: &str, files: &str) -> Storage {
        let key = self
            .credentials
            .as_ref()
            .map(|_| format!("{credentials}/{CREDENTIALS_FILE}"));
        let kind = self.identity;
        let name = kind.map(|kind| kind.as_str().to_owned());
        let ca = self.bundle.as_ref().map(|_| format!("{files}/{CA_FILE}"));
        let mut storage = Storage {
            redirect: self.redirect.clone().unwrap_or_default(),
            ..Storage::default()
        };
        match &self.section {
            Section::S3(s3) => {
                storage.s3 = Some(S3 {
                    credentials: S3Credentials { kind },
                    credentials_file: key,
                    ca_file: ca,
                    ..s3.clone()
                });
            }
            Section::Gcs(gcs) => {
                storage.gcs = Some(Gcs {
                    credentials: name
                        .map(|name| ("type".to_owned(), GcsCredential(Secret::new(name))))
                        .into_iter()
                        .collect(),
                    key_file: key,
                    ca_file: ca,
                    ..gcs.clone()
                });
            }
            Section::Azure(azure) => {
                storage.azure = Some(Azure {
                    credentials: AzureCredentials {
                        kind: name,
                        ..AzureCredentials::default()
                    },
                    credentials_file: key,
                    ca_file: ca,
                    ..azure.clone()
                });
            }
        }
        storage
    }
}

/// Returns the bucket that a spec names, if it names one.
///
/// # Errors
/// `InvalidSpec`, `ReferenceNotFound` and `ReferenceMalformed`: servers keep the credentials that they have.
pub fn resolve(mirror: &RegistryMirror, references: &References) -> Result<Option<Bucket>, Rejection> {
    let Some(section) = section(mirror) else {
        return Ok(None);
    };
    let Some(store) = &mirror.spec.storage.object_store else {
        return Ok(None);
    };
    let field = "spec.storage.objectStore";
    let credentials = match store.credentials.r#type {
        BucketCredentialsType::Secret => Some(secret(mirror, store, &section, references)?),
        BucketCredentialsType::WorkloadIdentity | BucketCredentialsType::Anonymous => None,
    };
    let bundle = match store.ca_bundle_ref() {
        None => None,
        Some(reference) => {
            let field = format!("{field}.tls.caBundleRef");
            Some(bundle::read(reference, &field, references)?)
        }
    };
    let bucket = Bucket {
        section,
        identity: identity(store.credentials.r#type),
        redirect: store.redirect.as_ref().map(redirect),
        credentials,
        bundle,
    };
    let secret = store.credentials.secret_ref.as_ref();
    check(&bucket, secret.map_or("", |secret| &secret.name))?;
    Ok(Some(bucket))
}

/// Returns the credentials of the Secret that a spec names, as servers read them.
///
/// # Errors
/// `InvalidSpec`, `ReferenceNotFound` and `ReferenceMalformed`.
fn secret(
    mirror: &RegistryMirror,
    store: &ObjectStore,
    section: &Section,
    references: &References,
) -> Result<Vec<u8>, Rejection> {
    let secret_field = "spec.storage.objectStore.credentials.secretRef";
    let secret = store.credentials.secret_ref.as_ref().ok_or_else(|| {
        Rejection::invalid(format!(
            "{secret_field} is missing: name the Secret with the credentials for the bucket"
        ))
    })?;
    let at = |rejection: Rejection| rejection.below(secret_field);
    not_the_operators(mirror, &secret.name, references).map_err(at)?;
    let reference = Reference::secret(&secret.name);
    let contents = references.get(&reference).ok_or_else(|| Rejection {
        reason: Reason::ReferenceNotFound,
        message: references.not_found(&reference, keys(section), &format!("{secret_field}.name")),
    })?;
    credentials(section, contents, &secret.name).map_err(|message| at(malformed(message)))
}

/// Returns the type of credentials as the servers' configuration has it; a Secret is a file and needs none.
fn identity(kind: BucketCredentialsType) -> Option<CredentialsType> {
    match kind {
        BucketCredentialsType::Secret => None,
        BucketCredentialsType::WorkloadIdentity => Some(CredentialsType::WorkloadIdentity),
        BucketCredentialsType::Anonymous => Some(CredentialsType::Anonymous),
    }
}

/// Returns the servers' section of redirects. `Never` is written down, too: then the server gives no notice.
fn redirect(redirect: &BucketRedirect) -> Redirect {
    Redirect {
        mode: Some(match redirect.mode {
            BucketRedirectMode::Never => RedirectMode::Never,
            BucketRedirectMode::Large => RedirectMode::Large,
        }),
        min_size: redirect.min_size.as_ref().and_then(|size| size.0.parse().ok()),
        endpoint: redirect.endpoint.clone(),
        ..Redirect::default()
    }
}

fn malformed(message: String) -> Rejection {
    Rejection {
        reason: Reason::ReferenceMalformed,
        message,
    }
}

/// Returns the identity of the bucket that a spec names, with its prefix: two mirrors with the same one would write the
/// same objects.
pub fn location(mirror: &RegistryMirror) -> Option<String> {
    let host = |url: &Option<String>| {
        url.as_deref().map_or(String::new(), |url| {
            format!(" at {}", url.trim_end_matches('/').to_lowercase())
        })
    };
    Some(match section(mirror)? {
        Section::S3(s3) => {
            let (bucket, root) = (
                s3.bucket.unwrap_or_default(),
                s3.root_directory.unwrap_or_default(),
            );
            format!("s3://{bucket}/{root}{}", host(&s3.region_endpoint))
        }
        Section::Gcs(gcs) => {
            let (bucket, root) = (
                gcs.bucket.unwrap_or_default(),
                gcs.root_directory.unwrap_or_default(),
            );
            format!("gs://{bucket}/{root}")
        }
        Section::Azure(azure) => {
            let (account, container) = (
                azure.account_name.unwrap_or_default(),
                azure.container.unwrap_or_default(),
            );
            let root = azure.root_directory.unwrap_or_default();
            format!("azure://{account}/{container}/{root}{}", host(&azure.service_url))
        }
    })
}

/// Returns the keys of the servers' configuration for the bucket of a spec.
fn section(mirror: &RegistryMirror) -> Option<Section> {
    let store = mirror.spec.storage.object_store.as_ref()?;
    let default = || format!("{}/{}", mirror.namespace().unwrap_or_default(), mirror.name_any());
    // A malformed quantity is rejected with the spec.
    let max_size = store.max_size.as_ref().and_then(|size| size.0.parse().ok());
    let root_directory = Some(store.prefix().map_or_else(default, str::to_owned));
    if let Some(s3) = &store.s3 {
        let encryption = s3.encryption.as_ref();
        return Some(Section::S3(S3 {
            bucket: Some(s3.bucket.clone()),
            root_directory,
            max_size,
            region: s3.region.clone(),
            region_endpoint: s3.endpoint.clone(),
            force_path_style: s3.path_style,
            encrypt: encryption.is_some(),
            key_id: encryption
                .filter(|encryption| encryption.r#type == S3EncryptionType::KMS)
                .and_then(|encryption| encryption.kms_key_id.clone()),
            storage_class: s3.storage_class.clone(),
            ..S3::default()
        }));
    }
    if let Some(gcs) = &store.gcs {
        return Some(Section::Gcs(Gcs {
            bucket: Some(gcs.bucket.clone()),
            root_directory,
            max_size,
            ..Gcs::default()
        }));
    }
    let azure = store.azure.as_ref()?;
    Some(Section::Azure(Azure {
        account_name: Some(azure.account_name.clone()),
        container: Some(azure.container.clone()),
        service_url: azure.endpoint.clone(),
        root_directory,
        max_size,
        ..Azure::default()
    }))
}

/// Returns the keys that a Secret needs, for messages.
fn keys(section: &Section) -> &'static str {
    match section {
        Section::S3(_) => "the keys accesskey and secretkey",
        Section::Gcs(_) => "the key keyfile, the JSON key of a service account",
        Section::Azure(_) => "the key accountkey",
    }
}

/// Returns the file with the credentials of a Secret, as servers read it.
///
/// # Errors
/// The Secret lacks a key, or a value is no text; the message has no value.
fn credentials(section: &Section, contents: &Contents, name: &str) -> Result<Vec<u8>, String> {
    let find = |names: Names| {
        let is_named = |key: &&String| names.iter().any(|name| name.eq_ignore_ascii_case(key));
        let key = contents.data.keys().find(is_named)?;
        let value = std::str::from_utf8(contents.get(key)?).ok()?.trim();
        (!value.is_empty()).then(|| value.to_owned())
    };
    let need = |names: Names| {
        find(names).ok_or_else(|| {
            format!(
                "Secret {name} has no text under the key {}: add {}",
                names.first().copied().unwrap_or_default(),
                keys(section)
            )
        })
    };
    Ok(match section {
        Section::S3(_) => {
            let mut file = json!({"accesskey": need(ACCESS_KEY)?, "secretkey": need(SECRET_KEY)?});
            if let Some(token) = find(SESSION_TOKEN) {
                file["sessiontoken"] = token.into();
            }
            file.to_string()
        }
        Section::Gcs(_) => need(KEY_FILE)?,
        Section::Azure(_) => json!({"accountkey": need(ACCOUNT_KEY)?}).to_string(),
    }
    .into_bytes())
}

/// Checks that the servers accept the bucket and its credentials.
///
/// # Errors
/// `InvalidSpec` for the keys of the configuration, and `ReferenceMalformed` for the credentials.
fn check(bucket: &Bucket, secret: &str) -> Result<(), Rejection> {
    let file = File {
        storage: bucket.storage("", ""),
        proxy: mirror::config::file::Proxy {
            remote_url: Some("https://registry.invalid".to_owned()),
            ..Default::default()
        },
        ..File::default()
    };
    let refused =
        |error: &dyn std::fmt::Display| Rejection::invalid(format!("spec.storage.objectStore: {error}"));
    let config = Config::new(&file).map_err(|error| refused(&error))?;
    let Some(settings) = &config.bucket else {
        return Ok(());
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let pem = bucket.bundle.as_deref().map(text);
    let credentials = bucket.credentials.as_deref().map(text);
    let is_secret = credentials.is_some();
    mirror::bucket::check_contents(settings, credentials, pem).map_err(|error| {
        malformed(if is_secret {
            format!("spec.storage.objectStore.credentials.secretRef: Secret {secret}: {error}")
        } else {
            format!("spec.storage.objectStore: {error}")
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;
    use test_case::test_case;

    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn mirror(object_store: &Value) -> RegistryMirror {
        let spec = json!({
            "upstreams": [{"host": "quay.io"}],
            "storage": {"type": "ObjectStore", "objectStore": object_store},
        });
        let mut mirror = RegistryMirror::new("hub", serde_json::from_value(spec).unwrap());
        mirror.metadata.namespace = Some("team".to_owned());
        mirror
    }

    fn s3(fields: &Value) -> RegistryMirror {
        let mut s3 = json!({"bucket": "b", "region": "r"});
        s3.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        mirror(&json!({"s3": s3, "credentials": {"secretRef": {"name": "keys"}}}))
    }

    fn section_of(mirror: &RegistryMirror) -> Section {
        section(mirror).unwrap()
    }

    fn read(mirror: &RegistryMirror, data: &[(&str, &str)]) -> Result<String, String> {
        let contents = Contents {
            data: data
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
                .collect::<BTreeMap<_, _>>(),
            ..Contents::default()
        };
        let file = credentials(&section_of(mirror), &contents, "keys")?;
        Ok(String::from_utf8(file).unwrap())
    }

    /// The location has everything that decides about the keys of objects, and the default prefix.
    #[test_case(json!({"s3": {"bucket": "b", "region": "r"}}) => "s3://b/team/hub")]
    #[test_case(json!({"s3": {"bucket": "b", "prefix": ""}}) => "s3://b/")]
    #[test_case(json!({"s3": {"bucket": "b", "prefix": "p", "endpoint": "http://A:1/"}}) => "s3://b/p at http://a:1")]
    #[test_case(json!({"gcs": {"bucket": "b"}}) => "gs://b/team/hub")]
    #[test_case(json!({"azure": {"accountName": "a", "container": "c", "prefix": "p"}}) => "azure://a/c/p")]
    fn location_names_bucket_and_prefix(mut store: Value) -> String {
        store["credentials"] = json!({"secretRef": {"name": "keys"}});
        location(&mirror(&store)).unwrap()
    }

    /// The keys of a Secret have Distribution's names, or those of Amazon's tools, in any letter case.
    #[test_case(&[("accesskey", "a"), ("secretkey", "s")] => Ok(r#"{"accesskey":"a","secretkey":"s"}"#.to_owned()))]
    #[test_case(&[("accessKey", "a\n"), ("secretKey", "s\n")] => Ok(r#"{"accesskey":"a","secretkey":"s"}"#.to_owned()); "camel case")]
    #[test_case(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_SESSION_TOKEN", "t")]
        => Ok(r#"{"accesskey":"a","secretkey":"s","sessiontoken":"t"}"#.to_owned()); "tools of Amazon")]
    #[test_case(&[("accesskey", "hunter2")]
        => Err("Secret keys has no text under the key secretkey: add the keys accesskey and secretkey".to_owned()); "one key")]
    #[test_case(&[("accesskey", ""), ("secretkey", "hunter2")]
        => Err("Secret keys has no text under the key accesskey: add the keys accesskey and secretkey".to_owned()); "an empty key")]
    fn s3_credentials_are_read_by_name(data: &[(&str, &str)]) -> Result<String, String> {
        read(&s3(&json!({})), data)
    }

    /// A key that the servers would refuse is refused, and the message has nothing of it.
    #[test_case(json!({"gcs": {"bucket": "b"}}), "keyfile", "\"hunter2\"")]
    #[test_case(json!({"gcs": {"bucket": "b"}}), "keyfile", r#"{"private_key": "hunter2"}"#)]
    #[test_case(json!({"azure": {"accountName": "a", "container": "c"}}), "accountkey", "hunter2!")]
    fn malformed_key_is_refused_without_its_content(mut store: Value, key: &str, value: &str) {
        store["credentials"] = json!({"secretRef": {"name": "keys"}});
        let mirror = mirror(&store);
        let bucket = Bucket {
            section: section_of(&mirror),
            identity: None,
            redirect: None,
            credentials: Some(read(&mirror, &[(key, value)]).unwrap().into_bytes()),
            bundle: None,
        };
        let error = check(&bucket, "keys").unwrap_err();
        assert_eq!(error.reason, Reason::ReferenceMalformed);
        assert!(!error.message.contains("hunter"), "{error}");
    }

    /// The section has the files in the directories of the server, and nothing secret.
    #[test]
    fn section_names_files_and_no_secret() {
        let mut mirror =
            s3(&json!({"encryption": {"type": "KMS", "kmsKeyID": "k"}, "storageClass": "STANDARD_IA"}));
        let store = mirror.spec.storage.object_store.as_mut().unwrap();
        store.max_size = Some(Quantity("2Ti".to_owned()));
        let bucket = Bucket {
            section: section_of(&mirror),
            identity: None,
            redirect: None,
            credentials: Some(b"hunter2".to_vec()),
            bundle: Some(b"PEM".to_vec()),
        };
        let s3 = bucket.storage("/c", "/f").s3.unwrap();
        let expected = json!({
            "bucket": "b", "region": "r", "rootdirectory": "team/hub", "encrypt": true, "keyid": "k",
            "storageclass": "STANDARD_IA", "maxsize": "2Ti", "credentialsfile": "/c/bucket.json", "cafile": "/f/bucket-ca.crt",
        });
        assert_eq!(serde_json::to_value(&s3).unwrap(), expected);
    }

    /// The section of a bucket without a Secret has the type of the credentials, and no file.
    #[test_case(json!({"s3": {"bucket": "b", "region": "r"}}), "WorkloadIdentity")]
    #[test_case(json!({"gcs": {"bucket": "b"}}), "WorkloadIdentity")]
    #[test_case(json!({"azure": {"accountName": "a", "container": "c"}}), "WorkloadIdentity")]
    #[test_case(json!({"s3": {"bucket": "b", "region": "r"}}), "Anonymous")]
    #[test_case(json!({"gcs": {"bucket": "b"}}), "Anonymous"; "anonymous gcs")]
    #[test_case(json!({"azure": {"accountName": "a", "container": "c"}}), "Anonymous"; "anonymous azure")]
    fn section_without_a_secret_has_a_type(mut store: Value, kind: &str) {
        let provider = store.as_object().unwrap().keys().next().unwrap().clone();
        store["credentials"] = json!({"type": kind});
        let bucket = resolve(&mirror(&store), &References::default()).unwrap().unwrap();
        assert_eq!(bucket.credentials, None);
        let storage = serde_json::to_value(bucket.storage("/c", "/f")).unwrap();
        let section = &storage[provider];
        assert_eq!(section["credentials"], json!({"type": kind}));
        assert!(
            section["credentialsfile"].is_null() && section["keyfile"].is_null(),
            "{section}"
        );
    }

    /// The section of redirects has the names of the configuration.
    #[test]
    fn section_of_redirects_has_their_settings() {
        let redirect = json!({"mode": "Large", "minSize": "32Mi", "endpoint": "https://s3.example"});
        let store = json!({
            "s3": {"bucket": "b", "region": "r"}, "credentials": {"type": "WorkloadIdentity"}, "redirect": redirect,
        });
        let bucket = resolve(&mirror(&store), &References::default()).unwrap().unwrap();
        let storage = serde_json::to_value(bucket.storage("/c", "/f")).unwrap();
        let expected = json!({"mode": "Large", "minsize": "32Mi", "endpoint": "https://s3.example"});
        assert_eq!(storage["redirect"], expected);
    }
}
