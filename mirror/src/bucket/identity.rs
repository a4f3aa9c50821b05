//! Workload identity: credentials that a cloud issues for a token that the platform gives the process.
//!
//! The names of the variables are those that the webhooks and agents of the clouds set. Nothing else is searched: a process
//! without them gets an error, and not the identity of its machine.

mod renewal;

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider};
use object_store::azure::{AzureConfigKey, AzureCredentialProvider, MicrosoftAzureBuilder};
use object_store::gcp::{GcpCredentialProvider, GoogleCloudStorageBuilder};
use url::{Host, Url};

use super::client::no_retries;
use super::connector::Connector;
use crate::tls::TrustedCertificates;
use renewal::IdentityCredentials;

/// A name that the crate's builders need, and that no request for credentials has.
const NO_BUCKET: &str = "none";

/// The environment of the process, or that of a test.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

fn process(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns the credentials of a role of AWS: for a web identity token (IRSA), or from the agent of EKS Pod Identity.
///
/// # Errors
/// The environment has neither of them.
pub(super) fn aws(region: &str) -> Result<AwsCredentialProvider, String> {
    let keys = aws_keys(&process)?;
    let is_local = keys
        .iter()
        .any(|(key, _)| *key == AmazonS3ConfigKey::ContainerCredentialsFullUri);
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(NO_BUCKET)
        .with_region(region)
        .with_retry(no_retries())
        .with_http_connector(connector(is_local)?);
    for (key, value) in keys {
        builder = builder.with_config(key, value);
    }
    let built = builder.build().map_err(|error| error.to_string())?;
    Ok(IdentityCredentials::new(
        Arc::clone(built.credentials()),
        without_empty_token,
    ))
}

/// Returns credentials without a session token that is empty: stores refuse it, and keys that do not expire have none.
fn without_empty_token(credential: Arc<AwsCredential>) -> Arc<AwsCredential> {
    if credential.token.as_deref() != Some("") {
        return credential;
    }
    Arc::new(AwsCredential {
        key_id: credential.key_id.clone(),
        secret_key: credential.secret_key.clone(),
        token: None,
    })
}

fn aws_keys(environment: Environment<'_>) -> Result<Vec<(AmazonS3ConfigKey, String)>, String> {
    let mut keys = Vec::new();
    if let Some(file) = environment("AWS_WEB_IDENTITY_TOKEN_FILE") {
        let role = environment("AWS_ROLE_ARN")
            .ok_or("WorkloadIdentity needs AWS_ROLE_ARN next to AWS_WEB_IDENTITY_TOKEN_FILE")?;
        keys.push((AmazonS3ConfigKey::WebIdentityTokenFile, file));
        keys.push((AmazonS3ConfigKey::RoleArn, role));
        let session = environment("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "registry-mirror".to_owned());
        keys.push((AmazonS3ConfigKey::RoleSessionName, session));
        if let Some(endpoint) = environment("AWS_ENDPOINT_URL_STS") {
            let endpoint = safe("AWS_ENDPOINT_URL_STS", &endpoint)?;
            keys.push((AmazonS3ConfigKey::StsEndpoint, endpoint));
        }
        return Ok(keys);
    }
    let uri = environment("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    let file = environment("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
    let (Some(uri), Some(file)) = (uri, file) else {
        return Err(
            "WorkloadIdentity needs AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, or \
             AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, in the environment: give the \
             ServiceAccount of the Pods a role, or set Secret"
                .to_owned(),
        );
    };
    keys.push((AmazonS3ConfigKey::ContainerCredentialsFullUri, uri));
    keys.push((AmazonS3ConfigKey::ContainerAuthorizationTokenFile, file));
    Ok(keys)
}

/// Returns the credentials of an application of Microsoft Entra, for a federated token.
///
/// # Errors
/// The environment has no federated token.
pub(super) fn azure() -> Result<AzureCredentialProvider, String> {
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account(NO_BUCKET)
        .with_container_name(NO_BUCKET)
        .with_credential_type("workload_identity")
        .with_retry(no_retries())
        .with_http_connector(connector(false)?);
    for (key, value) in azure_keys(&process)? {
        builder = builder.with_config(key, value);
    }
    let built = builder.build().map_err(|error| error.to_string())?;
    Ok(IdentityCredentials::new(
        Arc::clone(built.credentials()),
        |credential| credential,
    ))
}

fn azure_keys(environment: Environment<'_>) -> Result<Vec<(AzureConfigKey, String)>, String> {
    let need = |name: &str| {
        environment(name).ok_or_else(|| {
            format!(
                "WorkloadIdentity needs AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_FEDERATED_TOKEN_FILE in the environment, \
                 and {name} is missing: label the Pods for workload identity, or set Secret"
            )
        })
    };
    let mut keys = vec![
        (AzureConfigKey::ClientId, need("AZURE_CLIENT_ID")?),
        (AzureConfigKey::AuthorityId, need("AZURE_TENANT_ID")?),
        (
            AzureConfigKey::FederatedTokenFile,
            need("AZURE_FEDERATED_TOKEN_FILE")?,
        ),
    ];
    if let Some(host) = environment("AZURE_AUTHORITY_HOST") {
        keys.push((
            AzureConfigKey::AuthorityHost,
            safe("AZURE_AUTHORITY_HOST", &host)?,
        ));
    }
    Ok(keys)
}

/// Returns the credentials of the service account that the metadata server of Google Cloud has for the process.
///
/// # Errors
/// The HTTP client cannot be created.
pub(super) fn gcp() -> Result<GcpCredentialProvider, String> {
    let built = GoogleCloudStorageBuilder::new()
        .with_bucket_name(NO_BUCKET)
        .with_retry(no_retries())
        .with_http_connector(connector(true)?)
        .build()
        .map_err(|_| "the credentials of the home directory cannot be used: remove them".to_owned())?;
    Ok(IdentityCredentials::new(
        Arc::clone(built.credentials()),
        |credential| credential,
    ))
}

/// Returns the HTTP client for credentials; `is_local`: they come from an agent of the node.
fn connector(is_local: bool) -> Result<Connector, String> {
    Connector::for_credentials(TrustedCertificates::system(), is_local)
}

/// Returns an address that a token of the process may be sent to, without a slash at its end: the token has to be
/// encrypted unless it stays on this host.
fn safe(variable: &str, text: &str) -> Result<String, String> {
    let is_safe = |url: &Url| match (url.scheme(), url.host()) {
        ("https", Some(_)) => true,
        ("http", Some(Host::Domain(name))) => name == "localhost",
        ("http", Some(Host::Ipv4(address))) => address.is_loopback(),
        ("http", Some(Host::Ipv6(address))) => address.is_loopback(),
        _ => false,
    };
    match text.parse() {
        Ok(url) if is_safe(&url) => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err(format!(
            "{variable} must be an https:// URL: the token of the process is sent there"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn environment(set: &[&str]) -> impl Fn(&str) -> Option<String> {
        let set: Vec<_> = set.iter().map(|pair| (*pair).to_owned()).collect();
        move |name| {
            let value = |pair: &String| Some(pair.strip_prefix(name)?.strip_prefix('=')?.to_owned());
            set.iter().find_map(value)
        }
    }

    const TOKEN: &str = "AWS_WEB_IDENTITY_TOKEN_FILE=/t";
    const ROLE: &str = "AWS_ROLE_ARN=r";

    /// Both kinds of identity of AWS are read.
    #[test_case(&[TOKEN, ROLE] => "/t r registry-mirror"; "web identity")]
    #[test_case(&[TOKEN, ROLE, "AWS_ENDPOINT_URL_STS=http://127.0.0.1:1/"] => "/t r registry-mirror http://127.0.0.1:1"; "with an endpoint")]
    #[test_case(&["AWS_CONTAINER_CREDENTIALS_FULL_URI=u", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=/f"] => "u /f"; "an agent")]
    fn aws_identity_is_read_from_variables(set: &[&str]) -> String {
        let keys = aws_keys(&environment(set)).unwrap();
        let values: Vec<_> = keys.into_iter().map(|(_, value)| value).collect();
        values.join(" ")
    }

    /// A variable that is missing, or that would send the token in clear text, is named.
    #[test_case(&[TOKEN], "AWS_ROLE_ARN"; "no role")]
    #[test_case(&[ROLE], "AWS_WEB_IDENTITY_TOKEN_FILE"; "no token")]
    #[test_case(&[], "AWS_WEB_IDENTITY_TOKEN_FILE"; "nothing")]
    #[test_case(&["AWS_CONTAINER_CREDENTIALS_FULL_URI=u"], "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"; "half an agent")]
    #[test_case(&[TOKEN, ROLE, "AWS_ENDPOINT_URL_STS=http://sts.example"], "AWS_ENDPOINT_URL_STS"; "in clear text")]
    fn aws_identity_names_the_missing_variable(set: &[&str], variable: &str) {
        let error = aws_keys(&environment(set)).unwrap_err();
        assert!(error.contains(variable), "{error}");
    }

    /// A federated token of Azure needs three variables, and an authority that encrypts.
    #[test]
    fn azure_identity_names_the_missing_variable() {
        let all = [
            "AZURE_CLIENT_ID=c",
            "AZURE_TENANT_ID=t",
            "AZURE_FEDERATED_TOKEN_FILE=/f",
        ];
        assert_eq!(azure_keys(&environment(&all)).unwrap().len(), 3);
        for missing in 0..all.len() {
            let mut some = all.to_vec();
            let (name, _) = some.remove(missing).split_once('=').unwrap();
            let error = azure_keys(&environment(&some)).unwrap_err();
            assert!(error.contains(&format!("and {name} is missing")), "{error}");
        }
        let plain = [&all[..], &["AZURE_AUTHORITY_HOST=http://login.example"]].concat();
        assert!(
            azure_keys(&environment(&plain))
                .unwrap_err()
                .contains("AZURE_AUTHORITY_HOST")
        );
    }
}
