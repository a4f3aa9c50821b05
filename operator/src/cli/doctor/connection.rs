//! Connects to the API server of a cluster, and checks its response.

use std::{path::PathBuf, time::Duration};

use k8s_openapi::apimachinery::pkg::version::Info;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{
    error_message,
    report::{Check, Class, Finding},
};

/// Kubernetes 1.x that the operator is tested with: the oldest and the newest.
const OLDEST: u32 = 33;
const NEWEST: u32 = 36;
/// A cluster that takes longer is not well.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The arguments that select a cluster.
#[derive(Debug, clap::Args)]
pub(super) struct Connection {
    /// The kubeconfig. Absent: KUBECONFIG, ~/.kube/config, or the ServiceAccount of the Pod that this runs in
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Its context. Absent: the current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Ask in the name of this user, such as system:serviceaccount:NAMESPACE:NAME
    #[arg(long = "as", value_name = "USER")]
    pub(super) user: Option<String>,
    /// And of this group; may be repeated
    #[arg(long = "as-group", value_name = "GROUP", requires = "user")]
    groups: Vec<String>,
}

impl Connection {
    /// Returns the configuration of the selected cluster.
    ///
    /// # Errors
    /// The finding that there is no such cluster.
    pub(super) async fn config(&self) -> Result<Config, Finding> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match (&self.kubeconfig, &self.context) {
            (Some(file), _) => {
                let kubeconfig = Kubeconfig::read_from(file).map_err(|error| unknown(&error))?;
                let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
                config.map_err(|error| unknown(&error))?
            }
            (None, Some(_)) => {
                let config = Config::from_kubeconfig(&options).await;
                config.map_err(|error| unknown(&error))?
            }
            (None, None) => Config::infer().await.map_err(|error| unknown(&error))?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(ANSWER_TIMEOUT);
        // A user waits for the result: no retries.
        config.default_retry = false;
        if let Some(user) = &self.user {
            config = in_the_name_of(config, user, &self.groups);
        }
        Ok(config)
    }
}

/// Returns the finding that no cluster is configured.
pub(super) fn unknown(error: &dyn std::error::Error) -> Finding {
    let message = format!("no cluster configured: {error}");
    Finding::problem(Check::ApiServer, Class::Cluster, "kubeconfig", message)
        .advice("set --kubeconfig or KUBECONFIG, choose a --context that is in it, or run in a Pod with a ServiceAccount")
}

/// Returns the configuration with another user.
pub(super) fn in_the_name_of(mut config: Config, user: &str, groups: &[String]) -> Config {
    config.auth_info.impersonate = Some(user.to_owned());
    config.auth_info.impersonate_groups = (!groups.is_empty()).then(|| groups.to_vec());
    config
}

/// Asks for the version.
///
/// # Errors
/// What was found where nothing else can be asked.
pub(super) async fn check(client: &Client, address: &str) -> Result<Finding, Finding> {
    match client.apiserver_version().await {
        Ok(info) => Ok(version(address, &info)),
        Err(kube::Error::Api(status)) if status.code == 401 => {
            let message = "rejects the credentials of the kubeconfig";
            Err(
                Finding::problem(Check::ApiServer, Class::Cluster, address, message).advice(
                    "log in again, or choose another context (kubectl config get-contexts, --context)",
                ),
            )
        }
        // A user without permission for the version may have others.
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            let message = format!("version not readable: {}", status.message);
            Ok(Finding::warning(Check::ApiServer, address, message))
        }
        Err(error) => {
            let message = format!("no response: {}", error_message(&error));
            Err(Finding::problem(Check::ApiServer, Class::Cluster, address, message).advice(
                "is it the right cluster (kubectl config current-context, --context, --kubeconfig), and is there a way to \
                 it (VPN, firewall, proxy)?",
            ))
        }
    }
}

fn version(address: &str, info: &Info) -> Finding {
    let known = format!("Kubernetes {}", info.git_version);
    // Some providers add a sign.
    let minor = info
        .minor
        .trim_end_matches(|c: char| !c.is_ascii_digit())
        .parse::<u32>();
    match (info.major.as_str(), minor) {
        ("1", Ok(minor)) if minor < OLDEST => {
            let message = format!("{known} is older than 1.{OLDEST}, the oldest supported version");
            Finding::problem(Check::ApiServer, Class::Cluster, address, message)
                .advice("upgrade the cluster: older API servers drop or reject fields that the operator sets")
        }
        ("1", Ok(minor)) if minor > NEWEST => {
            let message = format!("{known} is newer than 1.{NEWEST}, the newest tested version");
            Finding::warning(Check::ApiServer, address, message)
        }
        ("1", Ok(_)) => Finding::ok(Check::ApiServer, address, known),
        _ => Finding::warning(
            Check::ApiServer,
            address,
            format!("{known} has an unknown version"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    /// The result that `doctor` gives to a version of Kubernetes.
    #[test_case("1", "33" => "ok"; "the oldest")]
    #[test_case("1", "36+" => "ok"; "the newest, of a provider")]
    #[test_case("1", "32" => "problem"; "too old")]
    #[test_case("1", "37" => "warning"; "not tested yet")]
    #[test_case("2", "0" => "warning"; "not known")]
    fn version_result(major: &str, minor: &str) -> String {
        let info = Info {
            major: major.to_owned(),
            minor: minor.to_owned(),
            ..Info::default()
        };
        let finding = serde_json::to_value(version("a", &info)).unwrap();
        finding["result"].as_str().unwrap().to_owned()
    }
}
