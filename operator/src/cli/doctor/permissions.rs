//! Checks the RBAC permissions of the operator with the API server.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
};
use kube::{Api, Client, Config, api::PostParams};

use super::{
    error_message,
    installation::{self, Installation},
    report::{Check, Class, Finding},
};
use crate::{
    cli::connection,
    node_poller::AgentService,
    rbac::{LEASE_CREATION, ON_AGENTS, ON_MIRRORS, ON_THE_LEASE, Rule},
};

/// The maximum number of access reviews at the same time.
const AT_A_TIME: usize = 8;

/// The user whose permissions are checked.
struct Checked {
    client: Client,
    /// A name for messages.
    who: String,
    /// The namespaces of mirrors; empty: all.
    namespaces: Vec<String>,
    /// The Lease, as namespace and name.
    lease: (String, String),
    /// The Service of the agents, if the operator polls them.
    agents: Option<AgentService>,
}

impl Checked {
    fn new(operator: &Installation, client: Client, who: String) -> Self {
        Self {
            client,
            who,
            namespaces: operator.namespaces.clone(),
            lease: operator.lease_parts(),
            agents: operator.agents.clone(),
        }
    }
}

/// Checks the RBAC permissions of each operator that was found, or those of the user that `--as` names. Without either
/// there is nothing to check: the permissions of the caller are not the operator's.
pub(super) async fn check(
    config: &Config,
    given: bool,
    installations: &[Installation],
    namespaces: &[String],
) -> Vec<Finding> {
    let client = match Client::try_from(config.clone()) {
        Ok(client) => client,
        Err(error) => return vec![failed("-", &error)],
    };
    let us = whoami(&client).await;
    if given {
        let who = us.unwrap_or_else(|_| "the user of the kubeconfig".to_owned());
        let checked = match installations.first() {
            Some(operator) => Checked::new(operator, client, who),
            None => Checked {
                client,
                who,
                namespaces: namespaces.to_vec(),
                lease: (config.default_namespace.clone(), installation::LEASE.to_owned()),
                agents: None,
            },
        };
        return findings(&checked).await;
    }
    let mut found = Vec::new();
    for operator in installations {
        let (namespace, name) = (&operator.namespace, &operator.account);
        let who = format!("system:serviceaccount:{namespace}:{name}");
        let is_us = us.as_ref().is_ok_and(|us| *us == who);
        let client = if is_us {
            Ok(client.clone())
        } else {
            as_account(config, &who, namespace)
        };
        match client {
            Ok(client) => found.extend(findings(&Checked::new(operator, client, who)).await),
            Err(error) => found.push(failed(&who, &error)),
        }
    }
    found
}

pub(super) fn as_account(config: &Config, user: &str, namespace: &str) -> kube::Result<Client> {
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ];
    Client::try_from(connection::in_the_name_of(config.clone(), user, &groups))
}

pub(super) async fn whoami(client: &Client) -> kube::Result<String> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = api
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    let user = review.status.and_then(|status| status.user_info?.username);
    Ok(user.unwrap_or_default())
}

fn failed(who: &str, error: &kube::Error) -> Finding {
    let message = format!("not checked: {}", error_message(error));
    Finding::problem(Check::Rights, Class::Cluster, who, message)
        .advice("try again once the API server works")
}

async fn findings(checked: &Checked) -> Vec<Finding> {
    let questions = questions(checked);
    let number = questions.len();
    let denied = stream::iter(questions)
        .map(|question| async move {
            let allowed = allowed(&checked.client, &question).await?;
            Ok::<_, kube::Error>((!allowed).then_some(question))
        })
        .buffered(AT_A_TIME)
        .try_filter_map(|denied| async { Ok(denied) })
        .try_collect::<Vec<_>>()
        .await;
    match denied {
        Ok(denied) if denied.is_empty() => {
            let message = format!(
                "has all {number} permissions that the operator needs {}",
                scope(&checked.namespaces)
            );
            vec![Finding::ok(Check::Rights, &checked.who, message)]
        }
        Ok(denied) => denials(&checked.who, &denied),
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            let message = format!("not checked: {}", status.message);
            vec![Finding::warning(Check::Rights, &checked.who, message).advice(
                "run it as a user that may impersonate the operator's ServiceAccount, or run helm test",
            )]
        }
        Err(error) => vec![failed(&checked.who, &error)],
    }
}

fn scope(namespaces: &[String]) -> String {
    match namespaces {
        [] => "in every namespace".to_owned(),
        some => format!("in {}", some.join(", ")),
    }
}

fn questions(checked: &Checked) -> Vec<ResourceAttributes> {
    let mut questions = Vec::new();
    let everywhere = [String::new()];
    let namespaces = if checked.namespaces.is_empty() {
        &everywhere[..]
    } else {
        &checked.namespaces
    };
    for namespace in namespaces {
        questions.extend(ON_MIRRORS.iter().flat_map(|rule| of_rule(rule, namespace)));
    }
    let (home, lease) = &checked.lease;
    let named = ON_THE_LEASE.iter().flat_map(|rule| of_rule(rule, home));
    questions.extend(named.map(|question| ResourceAttributes {
        name: Some(lease.clone()),
        ..question
    }));
    questions.extend(LEASE_CREATION.iter().flat_map(|rule| of_rule(rule, home)));
    if let Some(agents) = &checked.agents {
        let rules = ON_AGENTS.iter();
        questions.extend(rules.flat_map(|rule| of_rule(rule, &agents.namespace)));
    }
    questions
}

/// Returns the access reviews of a rule in a namespace; an empty one means all.
fn of_rule<'a>(rule: &'a Rule, namespace: &'a str) -> impl Iterator<Item = ResourceAttributes> {
    rule.resources.iter().flat_map(move |resource| {
        let (resource, subresource) = match resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (*resource, None),
        };
        rule.verbs.iter().map(move |verb| ResourceAttributes {
            group: Some(rule.group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: subresource.clone(),
            verb: Some((*verb).to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ResourceAttributes::default()
        })
    })
}

async fn allowed(client: &Client, question: &ResourceAttributes) -> kube::Result<bool> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(question.clone()),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Returns a finding for each resource, with the denied verbs.
fn denials(who: &str, denied: &[ResourceAttributes]) -> Vec<Finding> {
    let mut verbs = BTreeMap::<(String, String), Vec<&str>>::new();
    for question in denied {
        let verb = question.verb.as_deref().unwrap_or_default();
        let key = (resource(question), question.namespace.clone().unwrap_or_default());
        verbs.entry(key).or_default().push(verb);
    }
    verbs
        .into_iter()
        .map(|((resource, namespace), verbs)| {
            let place = match namespace.as_str() {
                "" => "every namespace",
                namespace => namespace,
            };
            let message = format!("may not {} {resource} in {place}", verbs.join(", "));
            Finding::problem(Check::Rights, Class::Cluster, who, message).advice(
                "the chart grants it with rbac.create=true, in every namespace or those of watchNamespaces",
            )
        })
        .collect()
}

/// Returns the name of a resource in the form of kubectl.
fn resource(question: &ResourceAttributes) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let (group, mut name) = (part(&question.group), part(&question.resource));
    if !group.is_empty() {
        name = format!("{name}.{group}");
    }
    match &question.subresource {
        Some(subresource) => format!("{name}/{subresource}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_verbs_are_grouped_by_resource() {
        let rule = Rule {
            group: "apps",
            resources: &["deployments/scale"],
            verbs: &["get", "patch"],
        };
        let denied: Vec<_> = of_rule(&rule, "a").chain(of_rule(&rule, "")).collect();
        let reported: Vec<_> = denials("ann", &denied)
            .iter()
            .map(|finding| {
                serde_json::to_value(finding).unwrap()["message"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(
            reported,
            [
                "may not get, patch deployments.apps/scale in every namespace",
                "may not get, patch deployments.apps/scale in a"
            ]
        );
    }
}
