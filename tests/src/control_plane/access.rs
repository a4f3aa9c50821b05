//! Kubeconfigs and the clients made of them.

use std::path::{Path, PathBuf};

use http::HeaderValue;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext,
};
use kube::{Api, Client, Config};

use super::Error;
use crate::scratch::Scratch;

const NAME: &str = "testbed";

/// Returns a kubeconfig with one user and its token.
pub(super) fn kubeconfig(server: String, ca: &Path, token: String) -> Kubeconfig {
    Kubeconfig {
        api_version: Some("v1".to_owned()),
        kind: Some("Config".to_owned()),
        clusters: vec![NamedCluster {
            name: NAME.to_owned(),
            cluster: Some(Cluster {
                server: Some(server),
                certificate_authority: Some(ca.display().to_string()),
                ..Cluster::default()
            }),
            ..NamedCluster::default()
        }],
        contexts: vec![NamedContext {
            name: NAME.to_owned(),
            context: Some(Context {
                cluster: NAME.to_owned(),
                user: Some(NAME.to_owned()),
                ..Context::default()
            }),
            ..NamedContext::default()
        }],
        current_context: Some(NAME.to_owned()),
        ..with_token(&Kubeconfig::default(), token)
    }
}

/// Returns a kubeconfig for the same cluster with another token.
pub(super) fn with_token(kubeconfig: &Kubeconfig, token: String) -> Kubeconfig {
    let user = current_user(kubeconfig).unwrap_or_else(|| NAME.to_owned());
    Kubeconfig {
        auth_infos: vec![NamedAuthInfo {
            name: user,
            auth_info: Some(AuthInfo {
                token: Some(token.into()),
                ..AuthInfo::default()
            }),
            ..NamedAuthInfo::default()
        }],
        ..kubeconfig.clone()
    }
}

fn current_user(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|c| &c.name == current)?;
    context.context.as_ref()?.user.clone()
}

/// Writes it as JSON, which is YAML too.
pub(super) fn write(scratch: &Scratch, name: &str, kubeconfig: &Kubeconfig) -> Result<PathBuf, Error> {
    let json = serde_json::to_vec_pretty(kubeconfig).map_err(std::io::Error::from);
    json.and_then(|json| scratch.write(name, json))
        .map_err(Error::io(format!("can't write {name}")))
}

pub(crate) async fn client(
    kubeconfig: &Kubeconfig,
    user_and_groups: Option<(&str, &[&str])>,
) -> Result<Client, Error> {
    Ok(Client::try_from(config(kubeconfig, user_and_groups).await?)?)
}

pub(super) async fn config(
    kubeconfig: &Kubeconfig,
    user_and_groups: Option<(&str, &[&str])>,
) -> Result<Config, Error> {
    crate::install_crypto_provider();
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default()).await?;
    if let Some((user, groups)) = user_and_groups {
        impersonate(&mut config, user, groups)?;
    }
    Ok(config)
}

fn impersonate(config: &mut Config, user: &str, groups: &[&str]) -> Result<(), Error> {
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| Error::Name(text.to_owned()));
    let user = ("impersonate-user", user);
    for (name, text) in std::iter::once(user).chain(groups.iter().map(|group| ("impersonate-group", *group)))
    {
        config
            .headers
            .push((http::HeaderName::from_static(name), value(text)?));
    }
    Ok(())
}

pub(super) async fn service_account_token(
    client: Client,
    namespace: &str,
    name: &str,
) -> Result<String, Error> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec::default(),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(name, &PostParams::default(), &request)
        .await?;
    Ok(answer.status.map(|status| status.token).unwrap_or_default())
}
