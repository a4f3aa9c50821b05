use serde_json::{Value, json};
use test_case::test_case;

use super::*;

const CERTIFICATE: &str = include_str!("../../../tests/specs/authority.pem");

fn mirror(change: &Value) -> RegistryMirror {
    let mut object = json!({
        "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
        "metadata": {"name": "hub", "namespace": "mirrors"},
        "spec": {
            "upstreams": [{"host": "docker.io"}], "storage": {"type": "Ephemeral"},
            "nodeConfiguration": {"mode": "Manage"},
        },
        "status": {"endpoint": {"url": "http://10.96.0.20:5000"}},
    });
    for (pointer, value) in change.as_object().unwrap() {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn target(change: &Value, bundle: Option<&str>) -> Option<Target> {
    let key = MirrorKey {
        namespace: "mirrors".to_owned(),
        name: "hub".to_owned(),
    };
    Target::new(&key, &mirror(change), bundle)
}

#[test]
fn mirror_with_an_address_is_a_target() {
    let target = target(&json!({}), None).unwrap();
    assert_eq!(
        (target.url.as_str(), target.is_only_source),
        ("http://10.96.0.20:5000", false)
    );
    assert_eq!(target.hosts, ["docker.io"]);
    assert!(
        target
            .files
            .hosts_toml
            .contains("[host.\"http://10.96.0.20:5000\"]")
    );
}

#[test_case(&json!({"/status/endpoint": null}), None => false; "no address")]
#[test_case(&json!({"/status/endpoint": {"url": "http://10.0.0.1:5000/v2\"]\nserver = \"x"}}), None => false; "address that breaks out")]
#[test_case(&json!({"/status/endpoint": {"url": "https://10.0.0.1:5000", "caConfigMap": "hub-ca"}}), None => false; "no CA yet")]
#[test_case(&json!({"/status/endpoint": {"url": "https://10.0.0.1:5000", "caConfigMap": "hub-ca"}}), Some("junk") => false; "no CA in the ConfigMap")]
#[test_case(&json!({"/status/endpoint": {"url": "https://10.0.0.1:5000", "caConfigMap": "hub-ca"}}), Some(CERTIFICATE) => true; "CA")]
#[test_case(&json!({"/status/endpoint": {"url": "https://10.0.0.1:5000"}}), None => true; "certificate of a known CA")]
fn mirror_is_a_target_or_not(change: &Value, bundle: Option<&str>) -> bool {
    target(change, bundle).is_some()
}

#[test]
fn config_map_gives_certificates_only() {
    let change = json!({"/status/endpoint": {"url": "https://10.0.0.1:5000", "caConfigMap": "hub-ca"}});
    let bundle = format!(
        "[host.\"http://evil\"]\n{CERTIFICATE}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    );
    let certificates = target(&change, Some(&bundle))
        .unwrap()
        .files
        .certificates
        .unwrap();
    assert_eq!(certificates.replace('\n', ""), CERTIFICATE.replace('\n', ""));
}

#[test_case("docker.io" => true)]
#[test_case("registry.example.com:5000" => true)]
#[test_case("[2001:db8::1]:5000" => true)]
#[test_case("" => false; "empty")]
#[test_case("." => false; "dot")]
#[test_case(".." => false; "parent")]
#[test_case("../../etc" => false; "path")]
#[test_case("a/b" => false; "slash")]
#[test_case("/etc" => false; "absolute")]
#[test_case("a\0b" => false; "zero byte")]
#[test_case("a\nb" => false; "line break")]
#[test_case("_default" => false; "default of containerd")]
#[test_case(".registry-mirror" => false; "mark of the agent")]
#[test_case(&"a.".repeat(200) => false; "long")]
fn host_is_a_directory_name_or_not(host: &str) -> bool {
    is_directory_name(host)
}

/// The API server refuses such hosts; the agent leaves them out even where it did not.
#[test]
fn hosts_outside_the_directory_are_left_out() {
    let upstreams = json!([{"host": "../../cron.d"}, {"host": "quay.io"}, {"host": "/etc"}]);
    let target = target(&json!({"/spec/upstreams": upstreams}), None).unwrap();
    assert_eq!(target.hosts, ["quay.io"]);
}

fn store(events: Vec<Event<ConfigMap>>) -> Store<String> {
    let mut store = Store::new(&["mirrors".to_owned()]);
    for event in events {
        store.apply("mirrors", event, bundle_of);
    }
    store
}

fn map(name: &str, data: Option<&str>) -> ConfigMap {
    let data = data.map(|text| json!({"ca.crt": text}));
    let owner = json!({
        "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "name": name, "uid": "1", "controller": true,
    });
    let metadata = json!({"name": names::hosts(name), "ownerReferences": [owner]});
    serde_json::from_value(json!({"metadata": metadata, "data": data})).unwrap()
}

#[test]
fn list_replaces_previous_objects_when_complete() {
    let listed = |name| {
        vec![
            Event::Init,
            Event::InitApply(map(name, Some("a"))),
            Event::InitDone,
        ]
    };
    let mut events = listed("one");
    assert!(store(events.clone()).is_synced());
    events.extend([Event::Init, Event::InitApply(map("two", Some("b")))]);
    let half = store(events.clone());
    assert!(half.get("mirrors", "one-hosts").is_some() && half.get("mirrors", "two-hosts").is_none());
    events.push(Event::InitDone);
    let whole = store(events);
    assert!(whole.get("mirrors", "one-hosts").is_none() && whole.get("mirrors", "two-hosts").is_some());
}

#[test]
fn changed_and_deleted_objects_are_followed() {
    let mut events = vec![
        Event::Init,
        Event::InitApply(map("one", Some("a"))),
        Event::InitDone,
    ];
    events.push(Event::Apply(map("one", Some("b"))));
    assert_eq!(store(events.clone()).get("mirrors", "one-hosts").unwrap(), "b");
    events.push(Event::Apply(map("one", None)));
    assert!(store(events.clone()).get("mirrors", "one-hosts").is_none());
    events.extend([
        Event::Apply(map("one", Some("c"))),
        Event::Delete(map("one", None)),
    ]);
    assert!(store(events).get("mirrors", "one-hosts").is_none());
}

fn with_generation(host: &str, generation: i64, accepted: &str, observed: i64) -> DynamicObject {
    let condition = json!({
        "type": "Accepted", "status": accepted, "reason": "A", "message": "", "observedGeneration": observed,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let change = json!({
        "/spec/upstreams": [{"host": host}], "/metadata/generation": generation, "/status/conditions": [condition],
    });
    serde_json::from_value(serde_json::to_value(mirror(&change)).unwrap()).unwrap()
}

/// A user who may change a mirror must not get more of the nodes than the operator accepts.
#[test]
fn spec_that_is_not_accepted_changes_no_target() {
    let namespaces = ["mirrors".to_owned()];
    let bundles = Store::new(&namespaces);
    let mut mirrors = Store::new(&namespaces);
    let mut hosts = |previous: &TargetSet, object| {
        mirrors.apply("mirrors", Event::Apply(object), |object| Some(parse(object)));
        let current = targets(&mirrors, &bundles, previous);
        let hosts = current
            .values()
            .flatten()
            .flat_map(|target| target.hosts.clone())
            .collect::<Vec<_>>();
        (current, hosts)
    };
    let (none, nothing) = hosts(&TargetSet::default(), with_generation("quay.io", 1, "False", 1));
    assert!(nothing.is_empty());
    let (first, accepted) = hosts(&none, with_generation("quay.io", 1, "True", 1));
    assert_eq!(accepted, ["quay.io"]);
    let (second, unread) = hosts(&first, with_generation("docker.io", 2, "True", 1));
    assert_eq!(unread, ["quay.io"]);
    let (third, rejected) = hosts(&second, with_generation("docker.io", 2, "False", 2));
    assert_eq!(rejected, ["quay.io"]);
    let (_, accepted) = hosts(&third, with_generation("docker.io", 2, "True", 2));
    assert_eq!(accepted, ["docker.io"]);
}

#[test_case(&json!({"/metadata/generation": 2}), false => (true, false); "spec that is not accepted")]
#[test_case(&json!({"/status/endpoint": null}), false => (true, false); "no address")]
#[test_case(&json!({"/spec/upstreams": 7}), false => (true, false); "spec of another version")]
#[test_case(&json!({"/metadata/generation": 2}), true => (true, true); "previous target")]
#[test_case(&json!({"/spec/nodeConfiguration": {"mode": "None"}}), true => (false, false); "mode None")]
#[test_case(&json!({"/spec/nodeConfiguration": {"mode": "Publish"}}), true => (false, false); "mode Publish")]
#[test_case(&json!({"/spec/nodeConfiguration": {}}), true => (false, false); "no mode")]
#[test_case(&json!({"/metadata/deletionTimestamp": "2026-01-01T00:00:00Z"}), true => (false, false); "being deleted")]
fn mirror_without_a_target_is_known_or_gone(change: &Value, has_previous: bool) -> (bool, bool) {
    let namespaces = ["mirrors".to_owned()];
    let bundles = Store::new(&namespaces);
    let mut mirrors = Store::new(&namespaces);
    let mut apply = |previous: &TargetSet, object: Value| {
        let object = serde_json::from_value(object).unwrap();
        mirrors.apply("mirrors", Event::Apply(object), |object| Some(parse(object)));
        targets(&mirrors, &bundles, previous)
    };
    let mut object = serde_json::to_value(with_generation("docker.io", 1, "True", 1)).unwrap();
    let mut previous = TargetSet::default();
    if has_previous {
        previous = apply(&previous, object.clone());
    }
    for (pointer, value) in change.as_object().unwrap() {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    let current = apply(&previous, object);
    let target = current.values().next();
    (target.is_some(), target.is_some_and(Option::is_some))
}

/// Of a `ConfigMap` with the operator's label, the agent keeps certificates only, and of a mirror no text for Pods.
#[test]
fn objects_are_kept_without_foreign_text() {
    let text = "x".repeat(1_000_000);
    let map = |name: &str, mirror: &str, bundle: &str| -> ConfigMap {
        let owner = json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "name": mirror, "uid": "1", "controller": true,
        });
        let metadata = json!({"name": name, "namespace": "mirrors", "ownerReferences": [owner]});
        serde_json::from_value(json!({"metadata": metadata, "data": {"ca.crt": bundle, "pad": text}}))
            .unwrap()
    };
    assert_eq!(bundle_of(map("hub-hosts", "hub", "pem")).as_deref(), Some("pem"));
    assert_eq!(bundle_of(map("other", "hub", "pem")), None, "another name");
    assert_eq!(bundle_of(map("hub-hosts", "hub", &text)), None, "too large");
    let mut unowned = map("hub-hosts", "hub", "pem");
    unowned.metadata.owner_references = None;
    assert_eq!(bundle_of(unowned), None, "of no mirror");
    let fat = mirror(&json!({
        "/metadata/annotations": {"pad": text},
        "/spec/pod": {"annotations": {"pad": text}},
        "/spec/service": {"annotations": {"pad": text}},
        "/spec/serviceAccount": {"annotations": {"pad": text}},
    }));
    let stored = parse(serde_json::from_value(json!(fat)).unwrap()).unwrap();
    assert!(json!(stored).to_string().len() < 2_000);
}
