//! The mirrors: what their status says, whether they answer, what nodes were given, what may go wrong.

use crds::RegistryMirror;
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::{Api, Client, ResourceExt, api::ListParams, core::DeserializeGuard};

use super::{
    conditions, endpoint, error_message, evictions,
    installation::Installation,
    pods,
    report::{Check, Class, Finding},
};
use crate::{
    cluster::Scope,
    desired::{self, Release},
    names,
    observed::ServiceAddress,
    warnings,
};

/// The maximum number of mirrors that are checked at the same time.
const AT_A_TIME: usize = 8;
/// The number of mirrors in a page of a list.
const PAGE: u32 = 500;

/// Checks every mirror of a scope, or the one of this name. The stream yields the findings of one mirror at a time.
pub(super) async fn check<'a>(
    client: &'a Client,
    scope: &Scope,
    name: Option<&str>,
    installations: &'a [Installation],
) -> impl Stream<Item = Vec<Finding>> + use<'a> {
    let (mirrors, found) = match find(client, scope, name).await {
        Ok(mirrors) => (mirrors, Vec::new()),
        Err(found) => (Vec::new(), found),
    };
    let each = stream::iter(mirrors).map(|mirror| of_stored(client, mirror, installations));
    stream::iter([found]).chain(each.buffered(AT_A_TIME))
}

/// Returns the mirrors to check.
///
/// # Errors
/// The findings if there are none; no finding if the CRD is absent, which its own finding reports.
async fn find(client: &Client, scope: &Scope, name: Option<&str>) -> Result<Vec<StoredMirror>, Vec<Finding>> {
    let mut mirrors = match list(client, scope).await {
        Ok(mirrors) => mirrors,
        Err(kube::Error::Api(status)) if status.code == 404 => return Err(Vec::new()),
        Err(error) => {
            let message = format!("RegistryMirrors not listed: {}", error_message(&error));
            return Err(vec![
                Finding::problem(Check::Mirror, Class::Cluster, place(scope), message)
                    .advice("choose a namespace whose mirrors you may view (-n)"),
            ]);
        }
    };
    if let Some(name) = name {
        let names: Vec<_> = mirrors.iter().map(ResourceExt::name_any).collect();
        mirrors.retain(|mirror| mirror.name_any() == name);
        if mirrors.is_empty() {
            return Err(vec![not_found(place(scope), name, &names)]);
        }
    }
    if mirrors.is_empty() {
        let message = "no RegistryMirror found";
        return Err(vec![Finding::ok(Check::Mirror, place(scope), message)]);
    }
    Ok(mirrors)
}

/// Returns the finding that a namespace has no mirror of this name.
fn not_found(namespace: &str, name: &str, names: &[String]) -> Finding {
    let subject = format!("{namespace}/{name}");
    let finding = Finding::problem(
        Check::Mirror,
        Class::Reference,
        subject,
        "RegistryMirror not found",
    );
    match crds::validate::closest(name, names.iter().map(String::as_str)) {
        Some(closest) => finding.advice(format!("did you mean {closest}?")),
        None if names.is_empty() => {
            finding.advice("choose another namespace with -n (kubectl get rmir -A lists all)")
        }
        None => finding.advice(format!(
            "choose one of {}, or another namespace with -n",
            names.join(", ")
        )),
    }
}

fn place(scope: &Scope) -> &str {
    match scope {
        Scope::Cluster => "every namespace",
        Scope::Namespace(namespace) => namespace,
    }
}

type StoredMirror = DeserializeGuard<RegistryMirror>;

/// Returns the mirrors of a scope.
pub(super) async fn list(client: &Client, scope: &Scope) -> kube::Result<Vec<StoredMirror>> {
    let api = scope.api::<StoredMirror>(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

async fn of_stored(client: &Client, stored: StoredMirror, installations: &[Installation]) -> Vec<Finding> {
    match stored.0 {
        Ok(mirror) => of_mirror(client, &mirror, installations).await,
        Err(invalid) => {
            let metadata = &invalid.metadata;
            let part = |part: &Option<String>| part.clone().unwrap_or_default();
            let subject = format!("{}/{}", part(&metadata.namespace), part(&metadata.name));
            let message = format!("stored object not readable: {}", invalid.error);
            vec![
                Finding::problem(Check::Mirror, Class::Spec, subject, message)
                    .advice("apply it again in the form of the installed version"),
            ]
        }
    }
}

async fn of_mirror(client: &Client, mirror: &RegistryMirror, installations: &[Installation]) -> Vec<Finding> {
    let namespace = mirror.namespace().unwrap_or_default();
    let subject = format!("{namespace}/{}", mirror.name_any());
    let mut findings = Vec::new();
    let operator = installations.iter().find(|operator| operator.covers(&namespace));
    if operator.is_none() && !installations.is_empty() {
        let message = "no operator covers its namespace";
        findings.push(
            Finding::problem(Check::Mirror, Class::Cluster, &subject, message)
                .advice("add the namespace to watchNamespaces of the chart"),
        );
    }
    findings.extend(conditions::findings(&subject, mirror));
    findings.extend(pods::check(client, &subject, mirror).await);
    findings.push(endpoint::check(client, &subject, mirror).await);
    findings.extend(nodes(client, &subject, mirror).await);
    findings.extend(evictions::check(client, &subject, mirror).await);
    let image = operator.and_then(|operator| operator.server_image.clone());
    let image = image.unwrap_or_else(|| Release::default().server_image);
    findings.extend(warnings::find(mirror, &image).into_iter().map(|risk| {
        let message = format!("{}: {}", risk.field, risk.message);
        Finding::warning(Check::Risk, &subject, message)
            .reason(risk.id)
            .advice(risk.advice)
    }));
    findings
}

/// Checks that the files for nodes exist and match the spec and the address of the Service.
async fn nodes(client: &Client, subject: &str, mirror: &RegistryMirror) -> Option<Finding> {
    if !mirror.spec.node_configuration.mode.is_published() {
        return None;
    }
    let (namespace, name) = (mirror.namespace().unwrap_or_default(), mirror.name_any());
    let map = names::hosts(&name);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
    let unknown = |what: &str, error: &kube::Error| {
        let message = format!("{what} not readable: {}", error_message(error));
        Some(Finding::warning(Check::Nodes, subject, message))
    };
    let published = match maps.get_opt(&map).await {
        Ok(Some(published)) => published.data.unwrap_or_default(),
        Ok(None) => {
            let message = format!("ConfigMap {map} with files for nodes not found");
            let finding = Finding::problem(Check::Nodes, Class::Other, subject, message);
            return Some(
                finding.advice("the operator creates it once the mirror is accepted and has an address"),
            );
        }
        Err(error) => return unknown(&format!("ConfigMap {map}"), &error),
    };
    let service = match services.get_opt(&name).await {
        Ok(service) => service.and_then(ServiceAddress::from_service),
        Err(error) => return unknown(&format!("Service {name}"), &error),
    };
    let authority = published.get(names::CA_BUNDLE_KEY).cloned();
    let wanted = desired::files_for_nodes(mirror, &service?, authority);
    let stale: Vec<_> = wanted
        .iter()
        .filter(|(file, text)| published.get(*file) != Some(text))
        .map(|(file, _)| file.as_str())
        .collect();
    if stale.is_empty() {
        let message = format!("ConfigMap {map} has {} files, all of them current", wanted.len());
        return Some(Finding::ok(Check::Nodes, subject, message));
    }
    let message = format!(
        "ConfigMap {map} does not match spec and address: {}",
        stale.join(", ")
    );
    Some(
        Finding::problem(Check::Nodes, Class::Other, subject, message)
            .advice("an operator of this version corrects it; give nodes the files again afterwards"),
    )
}
