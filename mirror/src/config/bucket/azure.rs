//! `storage.azure`.

use url::Url;

use super::{
    Azure, AzureCredential, BucketSettings, CredentialsType, PART_SIZE, Provider, endpoint, max_size, path,
    required, root,
};
use crate::config::{Error, file};
use crate::secret::Secret;

/// Returns the container of the section.
///
/// # Errors
/// A key is missing or does not fit.
pub(super) fn bucket(azure: &file::Azure) -> Result<BucketSettings, Error> {
    let account = required(
        azure.account_name.as_deref(),
        "storage.azure.accountname",
        "the name of the storage account",
    )?;
    let credentials = kind(azure)?;
    Ok(BucketSettings {
        credentials,
        redirect: None,
        name: required(
            azure.container.as_deref(),
            "storage.azure.container",
            "the name of the container",
        )?,
        root: root(azure.root_directory.as_deref(), "storage.azure.rootdirectory")?,
        part_size: PART_SIZE,
        max_size: max_size(azure.max_size, "storage.azure.maxsize")?,
        credentials_file: path(azure.credentials_file.as_deref()),
        ca_file: path(azure.ca_file.as_deref()),
        skip_verify: azure.skip_verify,
        provider: Provider::Azure(Azure {
            service: azure_service(azure, &account)?,
            credential: azure_credential(azure, credentials)?,
            account,
        }),
    })
}

/// Returns the source of the credentials. The type names a kind of secret, too, as in Distribution.
fn kind(azure: &file::Azure) -> Result<CredentialsType, Error> {
    match azure.credentials.kind.as_deref() {
        None | Some("client_secret" | "shared_key" | "") => Ok(CredentialsType::Secret),
        Some(text) => CredentialsType::parse(text).ok_or_else(|| {
            Error::invalid(
                "storage.azure.credentials.type",
                "must be Secret, WorkloadIdentity, Anonymous, client_secret or shared_key: the server does not search \
                 for credentials",
            )
        }),
    }
}

fn azure_credential(
    azure: &file::Azure,
    credentials: CredentialsType,
) -> Result<Option<AzureCredential>, Error> {
    let own = &azure.credentials;
    let key = azure
        .account_key
        .as_ref()
        .map(|key| AzureCredential::Key(key.0.clone()));
    match (own.kind.as_deref(), key) {
        (Some("client_secret"), _) => {
            let need = |value: Option<&str>, key| {
                required(
                    value,
                    &format!("storage.azure.credentials.{key}"),
                    "a value with client_secret",
                )
            };
            let secret = own.secret.as_ref().map(|secret| secret.0.expose());
            Ok(Some(AzureCredential::Client {
                client: need(own.client_id.as_deref(), "clientid")?,
                tenant: need(own.tenant_id.as_deref(), "tenantid")?,
                secret: Secret::new(need(secret, "secret")?),
            }))
        }
        (_, key) => {
            let has_secret = key.is_some() || azure.credentials_file.is_some() || own.secret.is_some();
            credentials.check(
                has_secret,
                "storage.azure",
                "accountkey",
                "the key of the account",
            )?;
            Ok(key)
        }
    }
}

fn azure_service(azure: &file::Azure, account: &str) -> Result<Url, Error> {
    let realm = azure.realm.as_deref().filter(|realm| !realm.is_empty());
    let made = format!("https://{account}.blob.{}", realm.unwrap_or("core.windows.net"));
    let (key, text) = match azure.service_url.as_deref() {
        Some(text) if !text.is_empty() => ("storage.azure.serviceurl", text),
        _ => ("storage.azure.realm", made.as_str()),
    };
    endpoint(text, key)
}
