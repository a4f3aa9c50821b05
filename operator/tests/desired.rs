//! Specs in, objects out: each spec's objects stand in a file below `snapshots/`.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::{collections::BTreeMap, convert::Infallible, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use crds::RegistryMirror;
use futures::executor::block_on;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use mirror::{
    config::file::{Admin, File},
    config::log::Level,
    credentials::{CredentialEntry, Entries},
    request_host::PageHosts,
};
use operator::{
    certificates::{self, CertificateLifetimes},
    dereference::{self, Contents, Reader, Reference, References},
    desired::{self, Child, Desired, Release},
    kind::Kind,
    names,
    observed::{Claim, Configuration, Observed, PollResult, Server, ServerReport, ServiceAddress, Text},
    peer_secret, validate,
};
use serde_json::{Value, json};
use test_case::test_case;

/// The objects that the specs refer to.
#[derive(Default)]
struct Shelf(BTreeMap<Reference, Contents>);

impl Reader for Shelf {
    type Error = Infallible;

    async fn read(&self, _: &str, reference: &Reference) -> Result<Option<Contents>, Infallible> {
        Ok(self.0.get(reference).cloned())
    }
}

impl Shelf {
    fn with(mut self, reference: Reference, r#type: &str, data: &[(&str, &str)]) -> Self {
        let data = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
            .collect();
        self.0.insert(
            reference,
            Contents {
                r#type: Some(r#type.to_owned()),
                data,
                ..Contents::default()
            },
        );
        self
    }

    /// Takes the credentials Secret as an API server would hold it.
    fn with_applied(mut self, child: &Child) -> Self {
        let secret: k8s_openapi::api::core::v1::Secret =
            serde_json::from_value(child.manifest.clone()).unwrap();
        self.0.insert(Reference::secret(&child.name), secret.into());
        self
    }
}

const USERS: &str = "ann:$2y$10$CwTycUXWue0Thq9StjUM0uJ8.Ln6PrmVYhSEV1gJOtMdCxJ.9p7Jm\n";
const CERTIFICATE: &str = include_str!("specs/authority.pem");

fn shelf() -> Shelf {
    Shelf::default()
        .with(
            Reference::secret("docker"),
            "kubernetes.io/dockerconfigjson",
            &[(
                ".dockerconfigjson",
                r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YW5uOmh1bnRlcjI="}}}"#,
            )],
        )
        .with(
            Reference::secret("basic"),
            "kubernetes.io/basic-auth",
            &[("username", "bob"), ("password", "pa:ss")],
        )
        .with(Reference::secret("token"), "Opaque", &[("token", "refresh")])
        .with(
            Reference::secret("serving"),
            "kubernetes.io/tls",
            &[
                ("tls.crt", include_str!("specs/serving.pem")),
                ("tls.key", include_str!("specs/serving-key.pem")),
                ("ca.crt", CERTIFICATE),
            ],
        )
        .with(
            Reference::secret("users"),
            "Opaque",
            &[("htpasswd", USERS), ("people", USERS)],
        )
        .with(
            Reference::secret("bucket"),
            "Opaque",
            &[("accesskey", "access"), ("secretkey", "hunter2")],
        )
        .with(Reference::secret("malformed"), "Opaque", &[("user", "bob")])
        .with(
            Reference::config_map("authorities"),
            "",
            &[("ca.crt", CERTIFICATE)],
        )
        .with(
            Reference::secret("authorities"),
            "Opaque",
            &[("root.pem", CERTIFICATE)],
        )
}

fn spec(name: &str) -> RegistryMirror {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/specs")
        .join(name)
        .with_extension("yaml");
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn references(mirror: &RegistryMirror, shelf: &Shelf) -> References {
    block_on(dereference::read(mirror, shelf)).unwrap()
}

fn desired(mirror: &RegistryMirror, shelf: &Shelf, observed: &Observed) -> Desired {
    let references = references(mirror, shelf);
    let mut accepted = validate::accept(mirror, &references).unwrap();
    peer_secret::keep(&mut accepted, &references);
    let names = certificates::subject_names(mirror, observed);
    certificates::ensure(
        &mut accepted,
        &references,
        &names,
        observed.at,
        &CertificateLifetimes::default(),
    )
    .unwrap();
    let release = Release {
        server_image: "registry-mirror:test".to_owned(),
        ..Release::default()
    };
    desired::objects(&accepted, &references, observed, &release).unwrap()
}

fn child(desired: &Desired, kind: Kind, name: &str) -> Child {
    desired
        .children()
        .find(|child| child.kind == kind && child.name == name)
        .unwrap()
        .clone()
}

/// The objects, with Secrets in clear.
fn documents(desired: &Desired) -> Vec<Value> {
    let clear = |child: &Child| {
        let mut manifest = child.manifest.clone();
        if child.kind == Kind::Secret {
            for value in manifest["data"].as_object_mut().unwrap().values_mut() {
                let bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
                *value = String::from_utf8(bytes).unwrap().into();
            }
        }
        if let Some(note) =
            manifest.pointer_mut("/metadata/annotations/registrymirror.io~1pod-template-source")
        {
            // It moves with what is shown anyway.
            let mut rendered: Value = serde_json::from_str(note.as_str().unwrap()).unwrap();
            rendered["template"] = "HASH".into();
            *note = rendered.to_string().into();
        }
        manifest
    };
    desired.children().map(clear).collect()
}

/// A cluster that has given the Service an address, and holds nothing else.
fn at_an_address() -> Observed {
    Observed {
        service: Some(ServiceAddress {
            ip: "10.96.0.7".to_owned(),
            port: 5000,
        }),
        service_names: vec!["10.96.0.7".to_owned()],
        ..Observed::default()
    }
}

macro_rules! golden {
    ($($test:ident: $name:literal)*) => {$(
        #[test]
        fn $test() {
            insta::assert_yaml_snapshot!($name, documents(&desired(&spec($name), &shelf(), &at_an_address())));
        }
    )*};
}

golden! {
    the_smallest_spec: "minimal"
    an_ephemeral_cache: "ephemeral"
    a_claim_that_is_there: "existing-claim"
    no_replica: "no-replicas"
    three_replicas_with_retained_claims: "three-replicas-retained"
    all_kinds_of_credentials: "credentials"
    unusable_credentials: "credentials-unusable"
    certificates_of_authorities: "ca-bundles"
    every_field: "every-field"
    a_bucket_and_an_ephemeral_tier: "object-store"
    a_bucket_and_claims: "object-store-claims"
    a_bucket_and_an_identity: "object-store-identity"
    a_bucket_of_google: "object-store-google"
    a_container_of_azure: "object-store-azure"
    a_serving_certificate: "tls-secret"
    users_only: "basic-access"
    paused: "paused"
}

/// Replaces keys, and values that depend on them, by their kinds, as each run draws others.
fn without_keys(document: &mut Value) {
    match document {
        Value::Object(fields) => {
            if let Some(mark) = fields.get_mut(names::RELOAD) {
                *mark = "…".into();
            }
            fields.values_mut().for_each(without_keys);
        }
        Value::Array(items) => items.iter_mut().for_each(without_keys),
        Value::String(text) => {
            while let Some((before, (kind, after))) = text
                .split_once("-----BEGIN ")
                .and_then(|(before, rest)| Some((before, rest.split_once("-----\n")?)))
            {
                let end = format!("-----END {kind}-----\n");
                let rest = after.split_once(&end).unwrap().1;
                *text = format!("{before}<{kind}>{rest}");
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The objects of a mirror with certificates of the operator's own CA.
#[test]
fn self_signed_tls_objects() {
    let mut documents = documents(&desired(&spec("tls-self-signed"), &shelf(), &at_an_address()));
    documents.iter_mut().for_each(without_keys);
    insta::assert_yaml_snapshot!("tls-self-signed", documents);
}

fn hosts(mirror: &RegistryMirror, service: ServiceAddress) -> BTreeMap<String, String> {
    let observed = Observed {
        service: Some(service),
        ..Observed::default()
    };
    let map = child(
        &desired(mirror, &shelf(), &observed),
        Kind::ConfigMap,
        "hub-hosts",
    );
    serde_json::from_value(map.manifest["data"].clone()).unwrap()
}

#[test]
fn node_files_have_the_ip_of_either_family() {
    let mut mirror = spec("minimal");
    mirror.spec.upstreams[0].host = "registry.example.com:5000".to_owned();
    let service = ServiceAddress {
        ip: "fd00::7".to_owned(),
        port: 80,
    };
    let files = hosts(&mirror, service);
    let file = &files["registry.example.com_5000.hosts.toml"];
    assert!(file.contains("[host.\"http://[fd00::7]:80\"]"), "{file}");
    assert!(
        !files.contains_key("registries.conf"),
        "image names have no IPv6 address"
    );
    assert!(
        !files.contains_key("daemon.json"),
        "Docker mirrors Docker Hub only"
    );
}

/// The shortest dial timeout is rounded up to a millisecond.
#[test]
fn shortest_dial_timeout_is_above_zero() {
    let mut mirror = spec("minimal");
    mirror.spec.node_configuration.dial_timeout = std::time::Duration::from_nanos(1).into();
    let service = ServiceAddress {
        ip: "10.96.0.7".to_owned(),
        port: 5000,
    };
    let file = &hosts(&mirror, service)["docker.io.hosts.toml"];
    assert!(file.contains("dial_timeout = \"1ms\""), "{file}");
}

#[test]
fn node_files_need_an_address_and_mode_publish() {
    let mut mirror = spec("minimal");
    let has = |mirror: &RegistryMirror, observed: &Observed| {
        let desired = desired(mirror, &shelf(), observed);
        desired.children().any(|child| child.name == "hub-hosts")
    };
    assert!(has(&mirror, &at_an_address()));
    assert!(!has(&mirror, &Observed::default()));
    mirror.spec.node_configuration.mode = crds::node_configuration::NodeConfigurationMode::None;
    assert!(!has(&mirror, &at_an_address()));
}

/// The rules of the API are no weaker than the server's, which would not start.
#[test]
fn servers_accept_every_valid_header() {
    let ascii = || (0..=0x7f_u8).map(char::from);
    let mut headers = Vec::new();
    for character in ascii() {
        headers.push((format!("x{character}"), "a".to_owned()));
        headers.push(("X-Value".to_owned(), format!("a{character}b")));
        headers.push(("X-Edge".to_owned(), character.to_string()));
    }
    let mut accepted = 0;
    for (name, value) in headers {
        let document = serde_json::json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": "hub"},
            "spec": {
                "upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"},
                "responseHeaders": [{"name": name, "value": value}],
            },
        });
        if let Ok(mirror) = crds::validate::created(&document) {
            accepted += 1;
            // It would panic.
            desired(&mirror, &shelf(), &Observed::default());
        }
    }
    assert!(accepted > 200, "{accepted}");
}

fn rejected(mirror: &RegistryMirror, shelf: &Shelf) -> (crds::conditions::Reason, String) {
    let references = references(mirror, shelf);
    let rejection = validate::accept(mirror, &references).err().unwrap();
    (rejection.reason, rejection.message)
}

/// A mirror without its certificate or its users is not started.
#[test]
fn missing_certificate_or_users_block_the_mirror() {
    use crds::conditions::Reason;
    for (name, reason) in [
        ("tls-secret", Reason::SecretNotFound),
        ("basic-access", Reason::ReferenceNotFound),
    ] {
        let (reported, message) = rejected(&spec(name), &Shelf::default());
        assert_eq!(reported, reason, "{message}");
    }
    let wrong = |secret: &str, data: &[(&str, &str)]| {
        Shelf::default().with(Reference::secret(secret), "Opaque", data)
    };
    let users = wrong("users", &[("htpasswd", "ann:hunter2")]);
    let (reported, message) = rejected(&spec("basic-access"), &users);
    assert_eq!(reported, Reason::ReferenceMalformed);
    assert!(!message.contains("hunter2"), "{message}");
    let certificate = wrong("serving", &[("tls.crt", CERTIFICATE)]);
    let (reported, message) = rejected(&spec("tls-secret"), &certificate);
    assert_eq!(reported, Reason::Malformed);
    assert!(message.contains("has no key tls.key: add it"), "{message}");
}

#[test]
fn ca_bundle_has_certificates_only() {
    let key = include_str!("specs/serving-key.pem");
    let secret = [
        ("tls.crt", include_str!("specs/serving.pem")),
        ("tls.key", key),
        ("ca.crt", &format!("\u{feff}# ours\n{key}{CERTIFICATE}")),
    ];
    let shelf = shelf().with(Reference::secret("serving"), "kubernetes.io/tls", &secret);
    let desired = desired(&spec("tls-secret"), &shelf, &at_an_address());
    let maps: Vec<_> = desired.children().filter(|c| c.kind == Kind::ConfigMap).collect();
    assert_eq!(
        child(&desired, Kind::ConfigMap, "hub-ca").manifest["data"]["ca.crt"],
        CERTIFICATE
    );
    assert!(
        maps.iter()
            .all(|map| !map.manifest.to_string().contains("PRIVATE KEY"))
    );
}

/// A certificate is still served after its Secret was deleted.
#[test]
fn certificate_of_deleted_secret_stays_served() {
    let mirror = spec("tls-secret");
    let first = desired(&mirror, &shelf(), &at_an_address());
    let files = child(&first, Kind::Secret, "hub-files");
    let without = Shelf::default().with_applied(&files);
    let references = references(&mirror, &without);
    let accepted = validate::accept(&mirror, &references).unwrap();
    let serving = accepted.serving.as_ref().unwrap();
    assert_eq!(
        serving.problem.as_ref().unwrap().reason,
        crds::conditions::Reason::SecretNotFound
    );
    let again = desired(&mirror, &without, &at_an_address());
    assert!(child(&again, Kind::Secret, "hub-files") == files);
}

#[test]
fn node_files_with_tls_have_address_and_ca() {
    let mirror = spec("tls-secret");
    let service = ServiceAddress {
        ip: "10.96.0.7".to_owned(),
        port: 5000,
    };
    let files = hosts(&mirror, service);
    assert_eq!(files["ca.crt"], CERTIFICATE);
    let file = files
        .iter()
        .find(|(name, _)| name.ends_with(".hosts.toml"))
        .unwrap()
        .1;
    assert!(
        file.contains("https://10.96.0.7:5000") && file.contains("ca = \"ca.crt\""),
        "{file}"
    );
    assert!(files["registries.conf"].contains("insecure = false"));
}

/// Only a mirror with several replicas has a `PodDisruptionBudget`.
#[test]
fn disruption_budget_needs_several_replicas() {
    let mut mirror = spec("minimal");
    for (replicas, expected) in [(0, false), (1, false), (2, true)] {
        mirror.spec.replicas = replicas;
        let desired = desired(&mirror, &shelf(), &Observed::default());
        let budget = desired.children().any(|c| c.kind == Kind::PodDisruptionBudget);
        assert_eq!(budget, expected, "{replicas}");
    }
}

fn data(secret: &Child) -> BTreeMap<String, String> {
    let data: BTreeMap<String, String> = serde_json::from_value(secret.manifest["data"].clone()).unwrap();
    let clear = |value: String| String::from_utf8(STANDARD.decode(value).unwrap()).unwrap();
    data.into_iter().map(|(key, value)| (key, clear(value))).collect()
}

/// Issues credentials, with the credentials that were issued before.
fn hand_out(mirror: &RegistryMirror, before: &Child, shelf: Shelf) -> Child {
    let shelf = shelf.with_applied(before);
    child(
        &desired(mirror, &shelf, &Observed::default()),
        Kind::Secret,
        "hub-credentials",
    )
}

fn first_hand_out(mirror: &RegistryMirror) -> Child {
    child(
        &desired(mirror, &shelf(), &Observed::default()),
        Kind::Secret,
        "hub-credentials",
    )
}

/// The version of credentials changes only with their content.
#[test]
fn credentials_version_follows_content() {
    let mirror = spec("credentials");
    let first = first_hand_out(&mirror);
    assert_eq!(data(&first)["version"], "1");
    let again = hand_out(&mirror, &first, shelf());
    assert!(again == first, "nothing changed");
    let rotated = shelf().with(
        Reference::secret("basic"),
        "kubernetes.io/basic-auth",
        &[("username", "bob"), ("password", "new")],
    );
    let rotated = hand_out(&mirror, &first, rotated);
    assert_eq!(data(&rotated)["version"], "2");
    assert!(data(&rotated)["config.json"].contains(r#""password":"new""#));
}

/// The version of credentials continues after their Secret was deleted.
#[test]
fn credentials_version_continues_after_deletion() {
    let mut mirror = spec("credentials");
    let upstream = serde_json::json!({
        "host": "docker.io", "state": "Unknown", "credentials": {"secret": "docker", "version": 7},
    });
    mirror.status = Some(serde_json::from_value(serde_json::json!({"upstreams": [upstream]})).unwrap());
    let again = first_hand_out(&mirror);
    assert_eq!(data(&again)["version"], "8");
    assert!(hand_out(&mirror, &again, shelf()) == again, "and moves no more");
}

#[test]
fn deleted_secret_leaves_its_credentials_in_use() {
    let mirror = spec("credentials");
    let first = first_hand_out(&mirror);
    let mut gone = shelf();
    gone.0.remove(&Reference::secret("basic"));
    assert!(hand_out(&mirror, &first, gone) == first);
}

/// Kept credentials are not used for a different address.
#[test]
fn kept_credentials_are_not_moved_to_other_address() {
    let mut mirror = spec("credentials");
    let first = first_hand_out(&mirror);
    let mut gone = shelf();
    gone.0.remove(&Reference::secret("basic"));
    mirror.spec.upstreams[1].remote_url = Some("https://elsewhere.example.com".to_owned());
    let second = hand_out(&mirror, &first, gone);
    assert!(
        data(&second)["config.json"].contains(r#""ghcr.io":{}"#),
        "{}",
        data(&second)["config.json"]
    );
}

#[test]
fn last_good_stays_when_another_secret_is_named() {
    let mut mirror = spec("credentials");
    let mut first = first_hand_out(&mirror);
    let good = r#"{"auths":{"ghcr.io":{"username":"bob","password":"old"}}}"#;
    first.manifest["data"]["last-good.json"] = STANDARD.encode(good).into();
    let other = serde_json::json!({"name": "other"});
    mirror.spec.upstreams[1].credentials_secret_ref = serde_json::from_value(other).unwrap();
    let other = hand_out(&mirror, &first, shelf());
    assert!(data(&other)["last-good.json"].contains(r#""password":"old""#));
    assert!(
        data(&other)["config.json"].contains(r#""ghcr.io":{}"#),
        "the other Secret is not there yet"
    );

    mirror.spec.upstreams[1].remote_url = Some("https://elsewhere.example.com".to_owned());
    let elsewhere = hand_out(&mirror, &first, shelf());
    assert!(
        !data(&elsewhere).contains_key("last-good.json"),
        "it goes to no other address"
    );
}

#[test]
fn proven_entry_becomes_last_good() {
    let mirror = spec("credentials");
    let mut first = first_hand_out(&mirror);
    let good = r#"{"auths":{"ghcr.io":{"username":"bob","password":"old"}}}"#;
    first.manifest["data"]["last-good.json"] = STANDARD.encode(good).into();
    let second = hand_out(&mirror, &first, shelf());
    assert_eq!(
        data(&second)["last-good.json"],
        r#"{"auths":{"ghcr.io":{"password":"old","username":"bob"}},"keyedBy":"upstreamHost"}"#
    );
}

#[test]
fn every_optional_object_is_pruned() {
    for name in [
        "minimal",
        "ephemeral",
        "ca-bundles",
        "every-field",
        "tls-self-signed",
    ] {
        let desired = desired(&spec(name), &shelf(), &Observed::default());
        let every = names::every("hub");
        // Claims stay; workloads, Services and the account are always asked for.
        let droppable = [Kind::ConfigMap, Kind::Secret, Kind::PodDisruptionBudget];
        for child in desired.children().filter(|child| droppable.contains(&child.kind)) {
            assert!(every.contains(&(child.kind, child.name.clone())), "{child:?}");
        }
    }
}

#[test]
fn ca_files_are_dropped_with_the_last_reference() {
    let without = desired(&spec("ephemeral"), &shelf(), &at_an_address());
    let superseded = without.superseded("hub");
    assert_eq!(
        superseded,
        [
            (Kind::ConfigMap, "hub-ca".to_owned()),
            (Kind::Secret, "hub-files".to_owned()),
            (Kind::Secret, "hub-ca-key".to_owned()),
            (Kind::Secret, "hub-peers".to_owned()),
            (Kind::PodDisruptionBudget, "hub".to_owned())
        ]
    );
}

fn claim(ordinal: u32, requested: &str) -> Claim {
    Claim {
        name: names::claim("hub", ordinal),
        ordinal,
        bound: true,
        requested: Some(Quantity(requested.to_owned())),
        ..Claim::default()
    }
}

fn claim_sizes(desired: &Desired) -> Vec<(String, String)> {
    let size = |child: &Child| {
        child.manifest["spec"]["resources"]["requests"]["storage"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    desired
        .claims
        .iter()
        .map(|child| (child.name.clone(), size(child)))
        .collect()
}

/// Scaling in keeps the `PersistentVolumeClaims`.
#[test]
fn scaling_in_keeps_the_pvcs() {
    let observed = Observed {
        claims: vec![claim(0, "50Gi"), claim(1, "50Gi")],
        ..Observed::default()
    };
    let desired = desired(&spec("no-replicas"), &shelf(), &observed);
    let names: Vec<_> = claim_sizes(&desired).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["cache-hub-0", "cache-hub-1"]);
}

/// A PersistentVolumeClaim grows and never shrinks.
#[test]
fn pvc_grows_and_never_shrinks() {
    let observed = Observed {
        claims: vec![claim(0, "20Gi")],
        ..Observed::default()
    };
    assert_eq!(
        claim_sizes(&desired(&spec("minimal"), &shelf(), &observed))[0].1,
        "50Gi"
    );
    let observed = Observed {
        claims: vec![claim(0, "80Gi")],
        ..Observed::default()
    };
    assert_eq!(
        claim_sizes(&desired(&spec("minimal"), &shelf(), &observed))[0].1,
        "80Gi"
    );
}

#[test]
fn failed_resize_is_reduced_above_capacity_only() {
    let asked_back = |capacity: &str| {
        let wish = Claim {
            capacity: Some(Quantity(capacity.to_owned())),
            ..claim(0, "500Gi")
        };
        let observed = Observed {
            claims: vec![wish],
            ..Observed::default()
        };
        claim_sizes(&desired(&spec("minimal"), &shelf(), &observed))
            .remove(0)
            .1
    };
    // The spec asks for 50Gi.
    assert_eq!(asked_back("20Gi"), "50Gi");
    assert_eq!(asked_back("50Gi"), "500Gi", "the API server would refuse it");
}

/// Too many replicas are refused ahead of any work for them.
#[test]
fn too_many_replicas_are_refused_first() {
    let mut mirror = spec("minimal");
    mirror.spec.replicas = i32::MAX;
    let (reason, message) = rejected(&mirror, &shelf());
    assert_eq!(reason, crds::conditions::Reason::InvalidSpec);
    assert!(message.contains("the maximum of 1000"), "{message}");
}

/// A PVC that kube-controller-manager creates from the template is deleted with the mirror where the policy says so.
#[test_case("Delete" => Some("RegistryMirror".to_owned()))]
#[test_case("Retain" => None)]
fn pvc_template_names_its_owner(policy: &str) -> Option<String> {
    let mut mirror = spec("minimal");
    let claim = mirror.spec.storage.persistent_volume_claim.as_mut().unwrap();
    claim.retention_policy = serde_json::from_value(json!(policy)).unwrap();
    let desired = desired(&mirror, &shelf(), &Observed::default());
    let template = &desired.workload.manifest["spec"]["volumeClaimTemplates"][0];
    let owner = template["metadata"]["ownerReferences"][0]["kind"].as_str()?;
    Some(owner.to_owned())
}

/// The volume claim template stays as it was created.
#[test]
fn pvc_template_stays_as_created() {
    let mut mirror = spec("minimal");
    let first = desired(&mirror, &shelf(), &Observed::default());
    let template = |desired: &Desired| desired.workload.manifest["spec"]["volumeClaimTemplates"].clone();
    let observed = Observed {
        claim_templates: serde_json::from_value(template(&first)).unwrap(),
        ..Observed::default()
    };
    mirror.spec.storage.persistent_volume_claim.as_mut().unwrap().size = Some(Quantity("99Gi".to_owned()));
    let grown = desired(&mirror, &shelf(), &observed);
    assert_eq!(template(&grown), template(&first));
    assert_eq!(claim_sizes(&grown)[0].1, "99Gi");
}

/// The secret of the servers is created once, kept with the line that a user adds, and mounted.
#[test]
fn peer_secret_is_created_once_and_mounted() {
    let mirror = spec("minimal");
    let ensured = |shelf: &Shelf| {
        let references = references(&mirror, shelf);
        let mut accepted = validate::accept(&mirror, &references).unwrap();
        peer_secret::ensure(&mut accepted, &references);
        accepted.peers.unwrap().remove(peer_secret::KEY).unwrap()
    };
    let (one, other) = (ensured(&shelf()), ensured(&shelf()));
    assert!(one.len() >= 32 && one != other, "it is random");
    let own = || Reference::secret("hub-peers");
    let rotating = format!("another-secret-of-them\n{}\n", String::from_utf8(one).unwrap());
    let stored = || shelf().with(own(), "Opaque", &[("secret", &rotating)]);
    assert_eq!(ensured(&stored()), rotating.as_bytes());
    let unusable = shelf().with(own(), "Opaque", &[("secret", "short")]);
    assert_ne!(ensured(&unusable), b"short");
    let desired = desired(&mirror, &stored(), &at_an_address());
    let secret = child(&desired, Kind::Secret, "hub-peers");
    assert_eq!(data(&secret)["secret"], rotating);
    let pod = desired.workload.manifest["spec"]["template"]["spec"].to_string();
    assert!(
        pod.contains(r#""secretName":"hub-peers""#) && pod.contains(r#""containerPort":5002"#),
        "{pod}"
    );
    assert!(
        pod.contains("hub-headless.") && pod.contains(".svc:5002"),
        "{pod}"
    );
    let service = child(&desired, Kind::Service, "hub-headless")
        .manifest
        .to_string();
    assert!(service.contains("5002"), "{service}");
}

/// With TLS for clients the servers have a certificate for each other, which the CA of the mirror issued and which stays.
#[test_case("tls-self-signed", true; "own certificate")]
#[test_case("tls-secret", true; "certificate of a Secret")]
#[test_case("minimal", false; "no tls")]
fn servers_with_tls_have_peer_certificate(name: &str, expected: bool) {
    let mirror = spec(name);
    let secret = "0123456789abcdef0123456789abcdef";
    let shelf = shelf().with(Reference::secret("hub-peers"), "Opaque", &[("secret", secret)]);
    let first = desired(&mirror, &shelf, &at_an_address());
    let files = data(&child(&first, Kind::Secret, "hub-peers"));
    let keys: Vec<_> = files.keys().map(String::as_str).collect();
    let pod = first.workload.manifest["spec"]["template"]["spec"].to_string();
    assert_eq!(pod.contains("REGISTRY_PEERS_TLS_CERTIFICATE"), expected, "{pod}");
    if !expected {
        assert_eq!(keys, ["secret"]);
        return;
    }
    assert_eq!(keys, ["ca.crt", "secret", "tls.crt", "tls.key"]);
    let value = |key: &str, file: &str| {
        format!(r#""name":"REGISTRY_PEERS_TLS_{key}","value":"/etc/registry-mirror/peers/{file}""#)
    };
    assert!(
        pod.contains(&value("KEY", "tls.key")) && pod.contains(&value("CLIENTCAS_0", "ca.crt")),
        "{pod}"
    );
    assert!(!pod.contains("hub-ca-key"), "{pod}");
    let ca = child(&first, Kind::Secret, "hub-ca-key");
    let peers = child(&first, Kind::Secret, "hub-peers");
    let stored = shelf.with_applied(&ca).with_applied(&peers);
    let second = desired(&mirror, &stored, &at_an_address());
    assert_eq!(data(&child(&second, Kind::Secret, "hub-peers")), files);
    assert_eq!(data(&child(&second, Kind::Secret, "hub-ca-key")), data(&ca));
}

/// With `peers.mode: Disabled` there is no port and no Secret, and a stored one is pruned.
#[test]
fn disabled_peers_have_no_port_and_no_secret() {
    let mut mirror = spec("minimal");
    mirror.spec.peers.mode = crds::peers::PeersMode::Disabled;
    let shelf = shelf().with(
        Reference::secret("hub-peers"),
        "Opaque",
        &[("secret", "0123456789abcdef0123")],
    );
    let references = references(&mirror, &shelf);
    let mut accepted = validate::accept(&mirror, &references).unwrap();
    peer_secret::ensure(&mut accepted, &references);
    assert!(accepted.peers.is_none());
    let desired = desired(&mirror, &shelf, &at_an_address());
    assert!(
        desired
            .superseded("hub")
            .contains(&(Kind::Secret, "hub-peers".to_owned()))
    );
    let objects: Vec<_> = desired
        .children()
        .map(|child| child.manifest.to_string())
        .collect();
    assert!(!objects.concat().contains("5002"));
}

/// Scaling does not restart the pod that runs.
#[test]
fn scaling_does_not_restart_pods() {
    let mut mirror = spec("minimal");
    let template = |mirror: &RegistryMirror| {
        desired(mirror, &shelf(), &Observed::default()).workload.manifest["spec"]["template"].clone()
    };
    let one = template(&mirror);
    mirror.spec.replicas = 3;
    assert_eq!(template(&mirror), one);
}

#[test]
fn reloadable_change_keeps_the_template() {
    let mut mirror = spec("credentials");
    let workload = |mirror: &RegistryMirror| desired(mirror, &shelf(), &Observed::default());
    let before = workload(&mirror);
    mirror.spec.cache.max_size = Some(Quantity("1Gi".to_owned()));
    mirror.spec.observability.log_level = crds::observability::LogLevel::Debug;
    mirror.spec.upstreams.pop();
    mirror.spec.upstreams[0].credentials_secret_ref = None;
    let after = workload(&mirror);
    assert_eq!(before.workload.manifest["spec"], after.workload.manifest["spec"]);
    assert_ne!(before.reload, after.reload, "but Pods are notified");
}

#[test]
fn new_first_upstream_changes_the_template() {
    let mut mirror = spec("credentials");
    let template = |mirror: &RegistryMirror| {
        desired(mirror, &shelf(), &Observed::default()).workload.manifest["spec"]["template"].clone()
    };
    let before = template(&mirror);
    assert_eq!(
        before["metadata"]["annotations"][names::FIRST_UPSTREAM],
        "docker.io"
    );
    mirror.spec.upstreams.swap(0, 3);
    assert_ne!(template(&mirror), before);
}

/// A spec that the server would refuse is rejected.
#[test]
fn spec_invalid_for_server_is_rejected() {
    let mut mirror = spec("ephemeral");
    let mut again = mirror.spec.upstreams[0].clone();
    mirror.spec.upstreams[0].host = "docker.io".to_owned();
    again.host = "index.docker.io".to_owned();
    mirror.spec.upstreams.push(again);
    let references = references(&mirror, &shelf());
    let accepted = validate::accept(&mirror, &references).unwrap();
    let refused = desired::objects(&accepted, &references, &Observed::default(), &Release::default());
    let rejection = refused.err().unwrap();
    assert_eq!(rejection.reason, crds::conditions::Reason::InvalidSpec);
    assert!(rejection.message.contains("docker.io"), "{rejection}");
}

/// The upstreams that a server of these files would show a password to, by host.
fn shown(config: &mirror::config::Config, json: &[u8]) -> Vec<String> {
    let entries = Entries::parse(json).unwrap();
    let upstreams = config.proxy.upstreams.iter();
    upstreams
        .filter(|upstream| matches!(entries.find(upstream), CredentialEntry::Given(_)))
        .map(|upstream| upstream.host.to_string())
        .collect()
}

#[test]
fn password_is_sent_by_its_own_upstream_only() {
    let mut mirror = spec("credentials");
    let mut direct = mirror.spec.upstreams[3].clone();
    direct.host = "ghcr-direct.example".to_owned();
    direct.remote_url = Some("https://ghcr.io".to_owned());
    mirror.spec.upstreams[1].remote_url = Some("https://proxy.corp".to_owned());
    mirror.spec.upstreams.push(direct);
    let desired = desired(&mirror, &shelf(), &Observed::default());
    let config = mirror::config::Config::new(&desired.config).unwrap();
    assert_eq!(
        shown(&config, &desired.issued.files()["config.json"]),
        ["docker.io", "ghcr.io", "quay.io"]
    );
}

#[test]
fn spec_label_does_not_override_the_selector() {
    let mut mirror = spec("ephemeral");
    mirror
        .spec
        .pod
        .labels
        .insert("app.kubernetes.io/instance".to_owned(), "other".to_owned());
    let desired = desired(&mirror, &shelf(), &Observed::default());
    let labels = &desired.workload.manifest["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["app.kubernetes.io/instance"], "hub");
}

#[test]
fn server_parses_the_rendered_configuration() {
    let mut tiny = spec("minimal");
    let claim = tiny.spec.storage.persistent_volume_claim.as_mut().unwrap();
    claim.size = Some(Quantity("50".to_owned()));
    let named = [
        "minimal",
        "credentials",
        "ca-bundles",
        "every-field",
        "existing-claim",
    ];
    let specs = named.map(|name| (name, spec(name)));
    for (name, mirror) in specs.into_iter().chain([("bytes", tiny)]) {
        let desired = desired(&mirror, &shelf(), &Observed::default());
        let config = child(&desired, Kind::ConfigMap, "hub-config");
        let yaml = config.manifest["data"]["config.yml"].as_str().unwrap();
        let container = &desired.workload.manifest["spec"]["template"]["spec"]["containers"][0];
        let env = container["env"].as_array().unwrap().iter().map(|variable| {
            let text = |key: &str| variable[key].as_str().unwrap().to_owned();
            (text("name"), text("value"))
        });
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yml");
        std::fs::write(&path, yaml).unwrap();
        let (config, notices) = mirror::config::load(Some(&path), env).unwrap();
        // Further notices are for administrators who write or take over a configuration.
        let mut logged = notices
            .iter()
            .filter(|notice| matches!(notice.level, Level::Error | Level::Warn));
        assert!(logged.next().is_none(), "{name}: {notices:?}");
        let hosts: Vec<_> = config
            .proxy
            .upstreams
            .iter()
            .map(|upstream| upstream.host.to_string())
            .collect();
        assert_eq!(
            hosts,
            mirror
                .spec
                .upstreams
                .iter()
                .map(|upstream| upstream.host.clone())
                .collect::<Vec<_>>()
        );
        assert!(config.proxy.credentials_directory.is_some(), "{name}");
    }
}

fn with_configuration(current: &Text, last_good: Option<&Text>, server: Option<&str>) -> Observed {
    let report = |version: &str| ServerReport {
        configuration: version.to_owned(),
        ..ServerReport::default()
    };
    let server = server.map(|version| Server {
        pod: "hub-0".to_owned(),
        uid: "u".to_owned(),
        address: [127, 0, 0, 2].into(),
        poll: PollResult::Report(report(version)),
    });
    Observed {
        configuration: Some(Configuration {
            current: current.clone(),
            last_good: last_good.cloned(),
        }),
        servers: server.into_iter().collect(),
        ..Observed::default()
    }
}

/// As the operator wrote it.
fn text(yaml: &str) -> Text {
    let text = Text {
        yaml: yaml.to_owned(),
        written: None,
    };
    Text {
        written: Some(text.version()),
        ..text
    }
}

fn last_good(observed: &Observed) -> Option<String> {
    let desired = desired(&spec("minimal"), &shelf(), observed);
    let config = child(&desired, Kind::ConfigMap, "hub-config");
    config.manifest["data"]["last-good.yml"]
        .as_str()
        .map(str::to_owned)
}

#[test]
fn last_good_configuration_is_kept_next_to_new() {
    let (old, older) = (text("old: 1"), text("older: 1"));
    let good = |observed: &Observed| last_good(observed);
    let version = old.version();
    let taken = with_configuration(&old, None, Some(&version));
    assert_eq!(good(&taken).as_deref(), Some("old: 1"));
    let refused = with_configuration(&old, Some(&older), Some("another"));
    assert_eq!(good(&refused).as_deref(), Some("older: 1"), "they never took it");
    let unconfirmed = with_configuration(&old, Some(&older), None);
    assert_eq!(
        good(&unconfirmed).as_deref(),
        Some("older: 1"),
        "no server has the new one"
    );
    assert_eq!(good(&Observed::default()), None, "there was none");
    let present = desired(&spec("minimal"), &shelf(), &Observed::default());
    let present = child(&present, Kind::ConfigMap, "hub-config").manifest["data"]["config.yml"].clone();
    let present = text(present.as_str().unwrap());
    let steady = with_configuration(&present, Some(&older), Some(&present.version()));
    assert_eq!(
        good(&steady).as_deref(),
        Some("older: 1"),
        "nothing is written at rest"
    );
}

#[test]
fn foreign_configuration_is_never_last_good() {
    let (old, edited) = (
        text("old: 1"),
        Text {
            yaml: "edited: 1".to_owned(),
            ..text("old: 1")
        },
    );
    let taken = with_configuration(&edited, Some(&old), Some(&edited.version()));
    assert_eq!(last_good(&taken).as_deref(), Some("old: 1"));
    assert_eq!(last_good(&with_configuration(&old, Some(&edited), None)), None);
}

/// The servers answer browsers by the names of `--page-host`; without one their configuration has no such key.
#[test]
fn page_hosts_reach_the_servers() {
    let mirror = spec("minimal");
    let references = references(&mirror, &shelf());
    let accepted = validate::accept(&mirror, &references).unwrap();
    let configured = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned());
        let release = Release {
            page_hosts: PageHosts::new(names).unwrap(),
            ..Release::default()
        };
        let desired = desired::objects(&accepted, &references, &Observed::default(), &release).unwrap();
        let config = child(&desired, Kind::ConfigMap, "hub-config");
        let yaml = config.manifest["data"]["config.yml"].as_str().unwrap();
        File::parse(yaml).unwrap().admin
    };
    assert_eq!(
        configured(&["mirrors.example.com"]).hosts,
        ["mirrors.example.com"]
    );
    assert_eq!(configured(&[]), Admin::default());
}

#[test]
fn queued_mirror_keeps_its_configuration() {
    let mirror = spec("minimal");
    let references = references(&mirror, &shelf());
    let accepted = validate::accept(&mirror, &references).unwrap();
    let kept = |observed: &Observed| {
        let release = Release {
            keeps_configuration: true,
            ..Release::default()
        };
        let desired = desired::objects(&accepted, &references, observed, &release).unwrap();
        let config = child(&desired, Kind::ConfigMap, "hub-config");
        let yaml = config.manifest["data"]["config.yml"].as_str().unwrap().to_owned();
        (yaml, desired.configuration_version)
    };
    let old = text("old: 1");
    assert_eq!(
        kept(&with_configuration(&old, None, None)),
        ("old: 1".to_owned(), old.version())
    );
    let edited = Text {
        yaml: "edited: 1".to_owned(),
        ..old
    };
    assert!(
        kept(&with_configuration(&edited, None, None))
            .0
            .contains("docker.io"),
        "unless someone changed it"
    );
}
