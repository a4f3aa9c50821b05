//! The effects of a changed field on running servers: the table of docs/operations.md is written from here, with
//! `UPDATE=1 cargo test -p registry-mirror --test changes`.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    env,
    fmt::Write,
    fs,
    path::Path,
};

use crds::RegistryMirror;
use futures::executor::block_on;
use k8s_openapi::api::core::v1::Secret;
use operator::{
    certificates::{self, CertificateLifetimes},
    dereference::{self, Contents, Reader, Reference},
    desired::{self, Child, Desired, Release},
    names,
    observed::{Observed, ServiceAddress},
    validate,
};
use serde_json::{Value, json};

/// The cluster IP of the Service.
const SERVICE_IP: &str = "10.96.0.7";

/// The objects that the specs refer to.
struct Shelf(BTreeMap<Reference, Contents>);

impl Reader for Shelf {
    type Error = Infallible;

    async fn read(&self, _: &str, reference: &Reference) -> Result<Option<Contents>, Infallible> {
        Ok(self.0.get(reference).cloned())
    }
}

fn shelf() -> Shelf {
    let user = |name: &str| format!("{name}:$2y$10$CwTycUXWue0Thq9StjUM0uJ8.Ln6PrmVYhSEV1gJOtMdCxJ.9p7Jm\n");
    let authority = |number: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![number.to_owned()]).unwrap();
        params.self_signed(&key).unwrap().pem()
    };
    let pair = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["hub".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        vec![("tls.crt", certificate), ("tls.key", key.serialize_pem())]
    };
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)
        .unwrap()
        .serialize_pem();
    let bucket = |word: &str| {
        let gcs = json!({"client_email": "a@example.com", "private_key": key, "private_key_id": word});
        vec![
            ("accesskey", word.to_owned()),
            ("secretkey", word.to_owned()),
            ("accountkey", format!("{word}000")),
            ("keyfile", gcs.to_string()),
        ]
    };
    let password = |word: &str| vec![("username", "ann".to_owned()), ("password", word.to_owned())];
    let secrets = [
        ("serving", pair()),
        ("renewed", pair()),
        ("users", vec![("htpasswd", user("ann")), ("people", user("bob"))]),
        ("others", vec![("htpasswd", user("eve"))]),
        ("one", password("one")),
        ("two", password("two")),
        ("authority", vec![("ca.crt", authority("1"))]),
        ("bucket", bucket("a")),
        ("other-bucket", bucket("b")),
    ];
    let maps = [
        (
            "authority",
            vec![("ca.crt", authority("2")), ("root.crt", authority("3"))],
        ),
        ("root", vec![("ca.crt", authority("4"))]),
    ];
    let contents = |data: Vec<(&str, String)>| Contents {
        data: data
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.into_bytes()))
            .collect(),
        ..Contents::default()
    };
    let secrets = secrets
        .into_iter()
        .map(|(name, data)| (Reference::secret(name), contents(data)));
    let maps = maps
        .into_iter()
        .map(|(name, data)| (Reference::config_map(name), contents(data)));
    Shelf(secrets.chain(maps).collect())
}

/// A field with a note on its change, and the specs before and after, as changes of the smallest spec.
struct Case {
    field: &'static str,
    note: &'static str,
    before: Value,
    after: Value,
}

fn case(field: &'static str, note: &'static str, before: Value, after: Value) -> Case {
    Case {
        field,
        note,
        before,
        after,
    }
}

/// Returns the change of a field from its default to a value; a field of `upstreams[]` is one of the second upstream.
fn set(field: &'static str, value: &Value) -> Case {
    let nested = |path: &str| {
        path.rsplit('.')
            .fold(value.clone(), |value, name| json!({name: value}))
    };
    match field.strip_prefix("spec.upstreams[].") {
        Some(path) => upstream(field, json!({}), nested(path)),
        None => case(field, "", json!({}), nested(&field["spec.".len()..])),
    }
}

/// Returns the change of a field of the second upstream.
fn upstream(field: &'static str, before: Value, after: Value) -> Case {
    let with = |mut fields: Value| {
        fields["host"] = fields.get("host").cloned().unwrap_or(json!("quay.io"));
        json!({"upstreams": [{"host": "docker.io"}, fields]})
    };
    case(field, "", with(before), with(after))
}

fn service(field: &'static str, value: &Value) -> Case {
    let name = field.strip_prefix("spec.service.").unwrap();
    let before = json!({"service": {"type": "LoadBalancer"}});
    case(
        field,
        "",
        before,
        json!({"service": {"type": "LoadBalancer", name: value}}),
    )
}

fn ca_bundle(kind: &str, name: &str, key: &str) -> Value {
    json!({"tls": {"caBundleRef": {"kind": kind, "name": name, "key": key}}})
}

/// A mirror that serves TLS, with these fields of `spec.tls`.
fn serving(mut tls: Value) -> Value {
    tls["mode"] = json!("Secret");
    tls["secretName"] = json!("serving");
    json!({"tls": tls})
}

fn clients_of((kind, name, key): (&str, &str, &str)) -> Value {
    json!({"clientCARef": {"kind": kind, "name": name, "key": key}})
}

/// A change of the CA of clients.
fn client_ca(field: &'static str, note: &'static str, before: Value, after: (&str, &str, &str)) -> Case {
    case(field, note, serving(before), serving(clients_of(after)))
}

fn basic(name: &str, key: &str) -> Value {
    json!({"access": {"mode": "Basic", "htpasswdSecretRef": {"name": name, "key": key}}})
}

/// A mirror with a bucket, with these fields of `spec.storage`.
fn bucket(mut storage: Value) -> Value {
    storage["type"] = json!("ObjectStore");
    storage["persistentVolumeClaim"] = Value::Null;
    let store = &mut storage["objectStore"];
    if store.is_null() {
        *store = json!({"s3": {"bucket": "images", "region": "r"}});
    }
    if store["credentials"].is_null() {
        store["credentials"] = json!({"secretRef": {"name": "bucket"}});
    }
    json!({"storage": storage})
}

/// A change of a field of a provider, from the fields that it needs.
fn provider(field: &'static str, value: &Value) -> Case {
    let mut names = field
        .strip_prefix("spec.storage.objectStore.")
        .unwrap()
        .split('.');
    let (provider, name) = (names.next().unwrap(), names.next().unwrap());
    let needed = match provider {
        "s3" => json!({"bucket": "images", "region": "r"}),
        "gcs" => json!({"bucket": "images"}),
        _ => json!({"accountName": "images", "container": "c"}),
    };
    let mut changed = needed.clone();
    changed[name] = value.clone();
    let with = |fields: &Value| bucket(json!({"objectStore": {provider: fields}}));
    case(field, "", with(&needed), with(&changed))
}

/// A change of redirects to a bucket.
fn redirect(field: &'static str, changed: &Value) -> Case {
    let with = |redirect: &Value| {
        let s3 = json!({"bucket": "images", "region": "r"});
        bucket(json!({"objectStore": {"s3": s3, "redirect": redirect}}))
    };
    case(field, "", with(&json!({"mode": "Large"})), with(changed))
}

fn bucket_ca(kind: &str, name: &str, key: &str) -> Value {
    let reference = json!({"kind": kind, "name": name, "key": key});
    bucket(
        json!({"objectStore": {"s3": {"bucket": "images", "region": "r"}, "tls": {"caBundleRef": reference}}}),
    )
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn bucket_cases() -> Vec<Case> {
    let tier = |claim: Value| {
        bucket(json!({"localTier": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": claim}}))
    };
    let credentials = |name: &str| {
        let s3 = json!({"bucket": "images", "region": "r"});
        bucket(json!({"objectStore": {"s3": s3, "credentials": {"secretRef": {"name": name}}}}))
    };
    let encrypted = |encryption: Value| {
        bucket(json!({"objectStore": {"s3": {"bucket": "images", "region": "r", "encryption": encryption}}}))
    };
    vec![
        case(
            "spec.storage.localTier.ephemeral.sizeLimit",
            "",
            bucket(json!({})),
            bucket(json!({"localTier": {"ephemeral": {"sizeLimit": "20Gi"}}})),
        ),
        case(
            "spec.storage.localTier.persistentVolumeClaim.existingClaim",
            "",
            tier(json!({"existingClaim": "a"})),
            tier(json!({"existingClaim": "b"})),
        ),
        case(
            "spec.storage.localTier.persistentVolumeClaim.retentionPolicy",
            "",
            tier(json!({"size": "50Gi"})),
            tier(json!({"size": "50Gi", "retentionPolicy": "Retain"})),
        ),
        case(
            "spec.storage.localTier.persistentVolumeClaim.size",
            "",
            tier(json!({"size": "50Gi"})),
            tier(json!({"size": "60Gi"})),
        ),
        case(
            "spec.storage.localTier.persistentVolumeClaim.storageClassName",
            "",
            tier(json!({"size": "50Gi"})),
            tier(json!({"size": "50Gi", "storageClassName": "fast"})),
        ),
        case(
            "spec.storage.localTier.type",
            "",
            bucket(json!({})),
            tier(json!({"size": "50Gi"})),
        ),
        provider("spec.storage.objectStore.azure.accountName", &json!("others")),
        provider("spec.storage.objectStore.azure.container", &json!("others")),
        provider(
            "spec.storage.objectStore.azure.endpoint",
            &json!("https://store.example.com"),
        ),
        provider("spec.storage.objectStore.azure.prefix", &json!("a/b")),
        case(
            "spec.storage.objectStore.credentials.secretRef.name",
            "",
            credentials("bucket"),
            credentials("other-bucket"),
        ),
        case(
            "spec.storage.objectStore.credentials.type",
            "named although it is the default",
            bucket(json!({})),
            bucket(json!({"objectStore": {
                "s3": {"bucket": "images", "region": "r"},
                "credentials": {"type": "Secret", "secretRef": {"name": "bucket"}},
            }})),
        ),
        case(
            "spec.storage.objectStore.credentials.type",
            "another type",
            bucket(json!({})),
            bucket(json!({"objectStore": {
                "s3": {"bucket": "images", "region": "r"}, "credentials": {"type": "WorkloadIdentity"},
            }})),
        ),
        provider("spec.storage.objectStore.gcs.bucket", &json!("others")),
        provider("spec.storage.objectStore.gcs.prefix", &json!("a/b")),
        case(
            "spec.storage.objectStore.maxSize",
            "",
            bucket(json!({})),
            bucket(json!({"objectStore": {"s3": {"bucket": "images", "region": "r"}, "maxSize": "2Ti"}})),
        ),
        redirect(
            "spec.storage.objectStore.redirect.endpoint",
            &json!({"mode": "Large", "endpoint": "https://s3.example"}),
        ),
        redirect(
            "spec.storage.objectStore.redirect.minSize",
            &json!({"mode": "Large", "minSize": "1Gi"}),
        ),
        redirect(
            "spec.storage.objectStore.redirect.mode",
            &json!({"mode": "Never"}),
        ),
        provider("spec.storage.objectStore.s3.bucket", &json!("others")),
        case(
            "spec.storage.objectStore.s3.encryption.kmsKeyID",
            "",
            encrypted(json!({"type": "KMS", "kmsKeyID": "a"})),
            encrypted(json!({"type": "KMS", "kmsKeyID": "b"})),
        ),
        case(
            "spec.storage.objectStore.s3.encryption.type",
            "",
            bucket(json!({})),
            encrypted(json!({"type": "AES256"})),
        ),
        provider(
            "spec.storage.objectStore.s3.endpoint",
            &json!("https://store.example.com"),
        ),
        provider("spec.storage.objectStore.s3.pathStyle", &json!(true)),
        provider("spec.storage.objectStore.s3.prefix", &json!("a/b")),
        provider("spec.storage.objectStore.s3.region", &json!("other")),
        provider("spec.storage.objectStore.s3.storageClass", &json!("STANDARD_IA")),
        case(
            "spec.storage.objectStore.tls.caBundleRef.key",
            "",
            bucket_ca("ConfigMap", "authority", "ca.crt"),
            bucket_ca("ConfigMap", "authority", "root.crt"),
        ),
        case(
            "spec.storage.objectStore.tls.caBundleRef.kind",
            "",
            bucket_ca("ConfigMap", "authority", "ca.crt"),
            bucket_ca("Secret", "authority", "ca.crt"),
        ),
        case(
            "spec.storage.objectStore.tls.caBundleRef.name",
            "set or removed",
            bucket(json!({})),
            bucket_ca("ConfigMap", "root", "ca.crt"),
        ),
    ]
}

fn cases() -> Vec<Case> {
    let mut cases = other_cases();
    let at = cases
        .iter()
        .position(|case| case.field.starts_with("spec.storage.persistent"))
        .unwrap();
    cases.splice(at..at, bucket_cases());
    cases
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn other_cases() -> Vec<Case> {
    let ephemeral = |limit: &str| json!({"storage": {"type": "Ephemeral", "persistentVolumeClaim": null, "ephemeral": {"sizeLimit": limit}}});
    let claim = |fields: Value| json!({"storage": {"persistentVolumeClaim": fields}});
    vec![
        case(
            "spec.access.htpasswdSecretRef.key",
            "",
            basic("users", "htpasswd"),
            basic("users", "people"),
        ),
        case(
            "spec.access.htpasswdSecretRef.name",
            "",
            basic("users", "htpasswd"),
            basic("others", "htpasswd"),
        ),
        case("spec.access.mode", "", json!({}), basic("users", "htpasswd")),
        set("spec.cache.maxSize", &json!("1Gi")),
        set("spec.cache.offline", &json!(true)),
        set("spec.cache.pinned", &json!(["docker.io/library/*:*"])),
        set("spec.cache.staleIfDenied", &json!(true)),
        set("spec.cache.staleIfError", &json!("1h")),
        set("spec.cache.tagTTL", &json!("1h")),
        set("spec.cache.ttl", &json!("1h")),
        set("spec.cache.ttlFrom", &json!("FirstFetch")),
        set("spec.nodeConfiguration.dialTimeout", &json!("1s")),
        set("spec.nodeConfiguration.fallback", &json!("Never")),
        set("spec.nodeConfiguration.mode", &json!("None")),
        set("spec.observability.logFormat", &json!("text")),
        set("spec.observability.accessLog", &json!("Disabled")),
        set("spec.observability.logLevel", &json!("debug")),
        set("spec.observability.otlpEndpoint", &json!("http://collector:4318")),
        set("spec.paused", &json!(true)),
        set("spec.peers.mode", &json!("Disabled")),
        set("spec.pod.affinity", &json!({"nodeAffinity": {}})),
        set("spec.pod.annotations", &json!({"example.com/a": "b"})),
        set(
            "spec.pod.containerSecurityContext",
            &json!({"readOnlyRootFilesystem": false}),
        ),
        set("spec.pod.image", &json!("mirror:2")),
        set("spec.pod.imagePullPolicy", &json!("Always")),
        set("spec.pod.imagePullSecrets", &json!([{"name": "pull"}])),
        set("spec.pod.labels", &json!({"example.com/a": "b"})),
        set("spec.pod.nodeSelector", &json!({"example.com/a": "b"})),
        set("spec.pod.priorityClassName", &json!("high")),
        set("spec.pod.resources", &json!({"limits": {"memory": "1Gi"}})),
        set("spec.pod.securityContext", &json!({})),
        set("spec.pod.tolerations", &json!([{"operator": "Exists"}])),
        set(
            "spec.pod.topologySpreadConstraints",
            &json!([{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]),
        ),
        case(
            "spec.responseHeaders[].name",
            "",
            json!({"responseHeaders": [{"name": "X-A", "value": "a"}]}),
            json!({"responseHeaders": [{"name": "X-B", "value": "a"}]}),
        ),
        case(
            "spec.responseHeaders[].value",
            "",
            json!({"responseHeaders": [{"name": "X-A", "value": "a"}]}),
            json!({"responseHeaders": [{"name": "X-A", "value": "b"}]}),
        ),
        set("spec.replicas", &json!(2)),
        service("spec.service.annotations", &json!({"example.com/a": "b"})),
        case(
            "spec.service.clusterIP",
            "to another address",
            json!({}),
            json!({"service": {"clusterIP": "10.96.0.2"}}),
        ),
        service("spec.service.externalTrafficPolicy", &json!("Local")),
        service("spec.service.ipFamilyPolicy", &json!("PreferDualStack")),
        service("spec.service.loadBalancerClass", &json!("example.com/lb")),
        service("spec.service.nodePort", &json!(30500)),
        service("spec.service.port", &json!(80)),
        set("spec.service.type", &json!("NodePort")),
        case(
            "spec.serviceAccount.annotations",
            "",
            json!({}),
            json!({"serviceAccount": {"annotations": {"example.com/a": "b"}}}),
        ),
        case(
            "spec.storage.ephemeral.sizeLimit",
            "",
            ephemeral("10Gi"),
            ephemeral("20Gi"),
        ),
        case(
            "spec.storage.persistentVolumeClaim.existingClaim",
            "",
            claim(json!({"size": null, "existingClaim": "a"})),
            claim(json!({"size": null, "existingClaim": "b"})),
        ),
        case(
            "spec.storage.persistentVolumeClaim.retentionPolicy",
            "",
            json!({}),
            claim(json!({"retentionPolicy": "Retain"})),
        ),
        case(
            "spec.storage.persistentVolumeClaim.size",
            "",
            json!({}),
            claim(json!({"size": "60Gi"})),
        ),
        case(
            "spec.storage.persistentVolumeClaim.storageClassName",
            "",
            json!({}),
            claim(json!({"storageClassName": "fast"})),
        ),
        case("spec.storage.type", "", json!({}), ephemeral("10Gi")),
        client_ca(
            "spec.tls.clientCARef.name",
            "set or removed",
            json!({}),
            ("ConfigMap", "authority", "ca.crt"),
        ),
        client_ca(
            "spec.tls.clientCARef.key",
            "",
            clients_of(("ConfigMap", "authority", "ca.crt")),
            ("ConfigMap", "authority", "root.crt"),
        ),
        client_ca(
            "spec.tls.clientCARef.kind",
            "",
            clients_of(("ConfigMap", "authority", "ca.crt")),
            ("Secret", "authority", "ca.crt"),
        ),
        client_ca(
            "spec.tls.clientCARef.name",
            "",
            clients_of(("ConfigMap", "authority", "ca.crt")),
            ("ConfigMap", "root", "ca.crt"),
        ),
        case(
            "spec.tls.minimumVersion",
            "",
            serving(json!({})),
            serving(json!({"minimumVersion": "VersionTLS13"})),
        ),
        case(
            "spec.tls.mode",
            "to or from `Disabled`",
            json!({}),
            json!({"tls": {"mode": "SelfSigned"}}),
        ),
        case(
            "spec.tls.mode",
            "between the others",
            json!({"tls": {"mode": "SelfSigned"}}),
            json!({"tls": {"mode": "Secret", "secretName": "serving"}}),
        ),
        case(
            "spec.tls.secretName",
            "",
            json!({"tls": {"mode": "Secret", "secretName": "serving"}}),
            json!({"tls": {"mode": "Secret", "secretName": "renewed"}}),
        ),
        upstream(
            "spec.upstreams[].credentialsSecretRef.name",
            json!({"credentialsSecretRef": {"name": "one"}}),
            json!({"credentialsSecretRef": {"name": "two"}}),
        ),
        set("spec.upstreams[].exclude", &json!(["a/b"])),
        case(
            "spec.upstreams[].host",
            "of the first",
            json!({"upstreams": [{"host": "docker.io"}]}),
            json!({"upstreams": [{"host": "quay.io"}]}),
        ),
        set("spec.upstreams[].host", &json!("ghcr.io")),
        set("spec.upstreams[].include", &json!(["a/b"])),
        set("spec.upstreams[].insecureAllowHTTPCredentials", &json!(true)),
        set("spec.upstreams[].proxyURL", &json!("http://proxy:3128")),
        set("spec.upstreams[].remoteURL", &json!("https://cache.example.com")),
        set("spec.upstreams[].repositoryPrefix", &json!("quay")),
        upstream(
            "spec.upstreams[].tls.caBundleRef.key",
            ca_bundle("ConfigMap", "authority", "ca.crt"),
            ca_bundle("ConfigMap", "authority", "root.crt"),
        ),
        upstream(
            "spec.upstreams[].tls.caBundleRef.kind",
            ca_bundle("ConfigMap", "authority", "ca.crt"),
            ca_bundle("Secret", "authority", "ca.crt"),
        ),
        upstream(
            "spec.upstreams[].tls.caBundleRef.name",
            json!({}),
            ca_bundle("ConfigMap", "root", "ca.crt"),
        ),
        set("spec.upstreams[].tls.insecureSkipVerify", &json!(true)),
        set("spec.upstreams[].trust.realms", &json!(["auth.example.com"])),
        set("spec.upstreams[].trust.redirects", &json!(["10.0.0.0/8"])),
    ]
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn document(patch: &Value) -> Value {
    let mut spec = json!({
        "upstreams": [{"host": "docker.io"}],
        "storage": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"size": "50Gi"}},
    });
    merge(&mut spec, patch);
    let metadata =
        json!({"name": "hub", "namespace": "mirrors", "uid": "4f8b1a1e-0000-4000-8000-000000000001"});
    json!({"apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "metadata": metadata, "spec": spec})
}

/// The credentials Secret as an API server would hold it.
fn issued_credentials(desired: &Desired) -> Option<Contents> {
    let secret = desired.children().find(|child| child.name == "hub-credentials")?;
    let secret: Secret = serde_json::from_value(secret.manifest.clone()).unwrap();
    Some(secret.into())
}

fn desired(mirror: &RegistryMirror, shelf: &Shelf, issued: Option<Contents>) -> Desired {
    let observed = Observed {
        service: Some(ServiceAddress {
            ip: SERVICE_IP.to_owned(),
            port: mirror.spec.service.port,
        }),
        ..Observed::default()
    };
    let mut references = block_on(dereference::read(mirror, shelf)).unwrap();
    references.credentials = issued;
    let mut accepted = validate::accept(mirror, &references).unwrap();
    let names = certificates::subject_names(mirror, &observed);
    certificates::ensure(
        &mut accepted,
        &references,
        &names,
        observed.at,
        &CertificateLifetimes::default(),
    )
    .unwrap();
    desired::objects(&accepted, &references, &observed, &Release::default()).unwrap()
}

/// Describes the effect of a change.
fn effect(case: &Case, shelf: &Shelf) -> String {
    let (before, after) = (document(&case.before), document(&case.after));
    let mut stored = crds::validate::completed(&before);
    stored["status"] = json!({"endpoint": {"url": format!("http://{SERVICE_IP}:5000")}});
    let old = crds::validate::created(&before).unwrap_or_else(|error| panic!("{}: {error}", case.field));
    let Ok(new) = crds::validate::changed(&after, &stored) else {
        crds::validate::created(&after).unwrap_or_else(|error| panic!("{}: {error}", case.field));
        return "refused".to_owned();
    };
    let old = desired(&old, shelf, None);
    let new = desired(&new, shelf, issued_credentials(&old));
    let template = |desired: &Desired| desired.workload.manifest["spec"]["template"].clone();
    if template(&old) != template(&new) {
        return "rolled: Pods are replaced".to_owned();
    }
    let mut kinds = changed(&old, &new);
    if old.reload != new.reload {
        // These are what a reload is made of.
        for kind in ["ConfigMap", "Secret", "StatefulSet", "Deployment"] {
            kinds.remove(kind);
        }
        let beside: Vec<_> = kinds.into_iter().collect();
        let reloaded = "reloaded: running servers load it";
        return match beside.as_slice() {
            [] => reloaded.to_owned(),
            beside => format!("{reloaded}; in place: {}", beside.join(", ")),
        };
    }
    if kinds.is_empty() {
        return "no effect on what runs".to_owned();
    }
    format!("in place: {}", kinds.into_iter().collect::<Vec<_>>().join(", "))
}

/// The kinds of the objects that differ, or that only one has.
fn changed(old: &Desired, new: &Desired) -> BTreeSet<String> {
    let differing = |these: &Desired, those: &Desired| -> Vec<String> {
        let here: Vec<&Child> = those.children().collect();
        let differs = |child: &&Child| !here.contains(child);
        these
            .children()
            .filter(differs)
            .map(|child| child.kind.to_string())
            .collect()
    };
    differing(old, new)
        .into_iter()
        .chain(differing(new, old))
        .collect()
}

#[test]
fn documented_effects_of_changes_match() {
    let shelf = shelf();
    let mut table = "| field | a change is |\n|---|---|\n".to_owned();
    for case in cases() {
        let note = if case.note.is_empty() {
            String::new()
        } else {
            format!(", {}", case.note)
        };
        let _ = writeln!(table, "| `{}`{note} | {} |", case.field, effect(&case, &shelf));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- changes -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- /changes -->").unwrap();
    let wanted = format!("{before}<!-- changes -->\n{table}<!-- /changes -->{after}");
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &wanted).unwrap();
    } else {
        assert!(
            page == wanted,
            "docs/operations.md says something else: run make generate"
        );
    }
}

/// The table of effects has every field of the spec.
#[test]
fn effects_table_has_every_spec_field() {
    let definition = serde_json::to_value(crds::crd()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut fields = BTreeSet::new();
    leaves(schema, "spec", &mut fields);
    let reported: BTreeSet<_> = cases().iter().map(|case| case.field.to_owned()).collect();
    assert_eq!(fields, reported);
}

/// Below `spec.pod` are Kubernetes' own types.
fn leaves(schema: &Value, path: &str, fields: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().unwrap() {
        let path = format!("{path}.{name}");
        let is_kubernetes = path.starts_with("spec.pod.");
        let (inner, path) = match &field["items"]["properties"] {
            Value::Null => (field, path),
            _ if is_kubernetes => (field, path),
            _ => (&field["items"], format!("{path}[]")),
        };
        if inner["properties"].is_object() && !is_kubernetes {
            leaves(inner, &path, fields);
        } else {
            fields.insert(path);
        }
    }
}

/// The mark of a reload is a workload's own: it must not count as a change of it.
#[test]
fn unchanged_spec_changes_nothing() {
    let shelf = shelf();
    let mirror: RegistryMirror = crds::validate::created(&document(&json!({}))).unwrap();
    let (one, two) = (desired(&mirror, &shelf, None), desired(&mirror, &shelf, None));
    assert!(changed(&one, &two).is_empty());
    assert!(
        one.workload.manifest["metadata"]["annotations"]
            .get(names::RELOAD)
            .is_some()
    );
}
