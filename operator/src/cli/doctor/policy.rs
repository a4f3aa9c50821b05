//! The limits that are looser than the chart's defaults: of specs, of the operator's writes, and of its namespaces.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
};

use super::{
    error_message,
    installation::Installation,
    permissions,
    report::{Check, Finding},
};

/// The beginning of what the chart's admission policies answer.
const ANSWER: &str = "the operator of registry-mirror may write only objects with its label";
/// The name of an object that is never kept.
const PROBE: &str = "registry-mirror-policy-probe";

/// Checks each operator that was found.
pub(super) async fn check(config: &Config, installations: &[Installation]) -> Vec<Finding> {
    let mut found = Vec::new();
    for operator in installations {
        let subject = format!("{}/{}", operator.namespace, operator.name);
        found.extend(of_specs(&subject, operator));
        found.extend(of_namespaces(&subject, operator));
        found.extend(of_writes(config, &subject, operator).await);
    }
    found
}

/// Returns a warning for each limit of specs that is looser than the default.
fn of_specs(subject: &str, operator: &Installation) -> Vec<Finding> {
    let Some(policy) = &operator.policy else {
        let message = "this version of doctor can't read the policy from the arguments of the operator";
        return vec![Finding::warning(Check::Policy, subject, message)];
    };
    let looser = policy.looser_than_default();
    if looser.is_empty() {
        let message = "limits specs at least as the default policy does";
        return vec![Finding::ok(Check::Policy, subject, message)];
    }
    let warning = |(value, allows)| {
        let message = format!("policy.{value} is looser than the default: it allows {allows}");
        Finding::warning(Check::Policy, subject, message).advice(
            "set it back, if every user who may create a RegistryMirror need not have that: docs/security.md",
        )
    };
    looser.into_iter().map(warning).collect()
}

fn of_namespaces(subject: &str, operator: &Installation) -> Option<Finding> {
    operator.namespaces.is_empty().then(|| {
        let message = "manages mirrors in every namespace: its account reads every Secret of the cluster";
        Finding::warning(Check::Policy, subject, message)
            .advice("set watchNamespaces to the namespaces of mirrors, if you know them")
    })
}

/// Tries to write an object that belongs to no mirror, as the operator and without keeping it: the admission policies
/// refuse it, whether installed by the chart or not.
async fn of_writes(config: &Config, subject: &str, operator: &Installation) -> Option<Finding> {
    let user = format!(
        "system:serviceaccount:{}:{}",
        operator.namespace, operator.account
    );
    let caller = Client::try_from(config.clone()).ok()?;
    let client = match permissions::whoami(&caller).await {
        Ok(us) if us == user => caller,
        _ => permissions::as_account(config, &user, &operator.namespace).ok()?,
    };
    let namespace = operator.namespaces.first().unwrap_or(&operator.namespace);
    let probe = ConfigMap {
        metadata: ObjectMeta {
            name: Some(PROBE.to_owned()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    };
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let written = Api::<ConfigMap>::namespaced(client, namespace)
        .create(&dry_run, &probe)
        .await;
    Some(verdict(subject, namespace, written.err()))
}

fn verdict(subject: &str, namespace: &str, refusal: Option<kube::Error>) -> Finding {
    match refusal {
        Some(kube::Error::Api(status)) if status.message.contains(ANSWER) => Finding::ok(
            Check::Policy,
            subject,
            "admission policies let it write only objects of mirrors",
        ),
        None => {
            let message = format!(
                "no admission policy keeps it from writing objects of others, such as in {namespace}"
            );
            Finding::warning(Check::Policy, subject, message)
                .advice("the chart installs the policies with admissionPolicies.enabled=true")
        }
        Some(error) => {
            let message = format!(
                "its admission policies can't be checked: {}",
                error_message(&error)
            );
            Finding::warning(Check::Policy, subject, message).advice(
                "run doctor as a user who may impersonate the operator's ServiceAccount, or use helm test",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use test_case::test_case;

    use super::*;
    use crate::policy::{ExistingClaimMode, Policy};

    fn printed(findings: &[Finding]) -> Vec<String> {
        let line = |finding: &Finding| {
            let finding = serde_json::to_value(finding).unwrap();
            let text = |field: &str| finding[field].as_str().unwrap().to_owned();
            format!("{}: {}", text("result"), text("message"))
        };
        findings.iter().map(line).collect()
    }

    #[test]
    fn looser_policy_is_warned_of_by_value() {
        let operator = |policy| Installation {
            policy,
            ..Installation::default()
        };
        let looser = Policy {
            existing_claims: ExistingClaimMode::Any,
            ..Policy::default()
        };
        assert_eq!(
            printed(&of_specs("a/b", &operator(Some(looser)))),
            ["warning: policy.existingClaims is looser than the default: it allows any"]
        );
        assert_eq!(
            printed(&of_specs("a/b", &operator(Some(Policy::default())))),
            ["ok: limits specs at least as the default policy does"]
        );
        assert!(printed(&of_specs("a/b", &operator(None)))[0].starts_with("warning: "));
    }

    #[test]
    fn operator_of_every_namespace_is_warned_of() {
        let mut operator = Installation::default();
        assert!(of_namespaces("a/b", &operator).is_some());
        operator.namespaces.push("mirrors".to_owned());
        assert!(of_namespaces("a/b", &operator).is_none());
    }

    #[test_case(Some(format!("configmaps is forbidden: ValidatingAdmissionPolicy 'x' denied request: {ANSWER}")) => "ok")]
    #[test_case(Some("configmaps is forbidden: exceeded quota".to_owned()) => "warning"; "another refusal")]
    #[test_case(None => "warning"; "no refusal")]
    fn write_of_foreign_object_shows_policies(refusal: Option<String>) -> String {
        let refusal = refusal.map(|message| kube::Error::Api(Status::failure(&message, "Forbidden").boxed()));
        let finding = serde_json::to_value(verdict("a/b", "a", refusal)).unwrap();
        finding["result"].as_str().unwrap().to_owned()
    }
}
