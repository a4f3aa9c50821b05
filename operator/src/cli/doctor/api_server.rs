//! Checks the response and the version of the API server.

use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Client;

use super::{
    error_message,
    report::{Check, Class, Finding},
};
use crate::cli::connection::NoCluster;

/// Kubernetes 1.x that the operator is tested with: the oldest and the newest.
const OLDEST: u32 = 33;
const NEWEST: u32 = 36;

/// Returns the finding that no cluster is configured.
pub(super) fn not_configured(error: &NoCluster) -> Finding {
    let message = format!("no cluster configured: {}", error.message);
    Finding::problem(Check::ApiServer, Class::Cluster, "kubeconfig", message).advice(&error.advice)
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
