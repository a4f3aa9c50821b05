//! Repairs fields of other field managers that stop a mirror's object, or make the API server refuse each later write.
//!
//! An apply keeps the fields of others, and mostly that is right: a sidecar, an annotation, a toleration stay. The fields
//! here are different: a Service with a foreign port has two of one name, a paused Deployment rolls nothing out, and an
//! admission policy refuses each write of a Pod template with `hostNetwork`.

use serde_json::{Map, Value, json};

use crate::kind::Kind;

/// A field that an object has only if its manifest sets it, and the default of the API server as JSON.
type Field = (&'static str, &'static str);

const NO_DEFAULT: &str = "";

const SERVICE: &[Field] = &[
    ("/spec/externalName", NO_DEFAULT),
    ("/spec/sessionAffinity", r#""None""#),
    ("/spec/sessionAffinityConfig", NO_DEFAULT),
    ("/spec/publishNotReadyAddresses", "false"),
    ("/spec/internalTrafficPolicy", r#""Cluster""#),
    ("/spec/externalTrafficPolicy", r#""Cluster""#),
];
const BUDGET: &[Field] = &[
    ("/spec/minAvailable", NO_DEFAULT),
    ("/spec/maxUnavailable", NO_DEFAULT),
];
const WORKLOAD: &[Field] = &[
    ("/spec/paused", "false"),
    ("/spec/minReadySeconds", "0"),
    ("/spec/ordinals", NO_DEFAULT),
    ("/spec/updateStrategy/rollingUpdate/partition", "0"),
    ("/spec/template/spec/hostNetwork", "false"),
    ("/spec/template/spec/hostPID", "false"),
    ("/spec/template/spec/hostIPC", "false"),
    ("/spec/template/spec/hostUsers", NO_DEFAULT),
    ("/spec/template/spec/nodeName", r#""""#),
    ("/spec/template/spec/readinessGates", NO_DEFAULT),
    ("/spec/template/spec/schedulingGates", NO_DEFAULT),
    ("/spec/template/spec/securityContext/windowsOptions", NO_DEFAULT),
];
/// Fields of the server's container.
const CONTAINER: &[Field] = &[
    ("/securityContext/privileged", "false"),
    ("/securityContext/capabilities/add", NO_DEFAULT),
    ("/securityContext/procMount", r#""Default""#),
    ("/securityContext/windowsOptions", NO_DEFAULT),
];
/// Fields of a port of the server's container.
const PORT: &[Field] = &[("/hostPort", "0"), ("/hostIP", NO_DEFAULT)];
/// Fields of a mount of the server's container.
const MOUNT: &[Field] = &[("/subPath", NO_DEFAULT), ("/subPathExpr", NO_DEFAULT)];
/// The actions of a probe.
const HANDLERS: &[&str] = &["exec", "grpc", "httpGet", "tcpSocket"];

/// Returns the merge patch that removes such fields from a live object; `None`: it has none.
///
/// `is_held`: the Pod template of the live object stays, whatever the manifest has.
pub(super) fn repair(kind: Kind, live: &Value, manifest: &Value, is_held: bool) -> Option<Value> {
    if kind == Kind::ConfigMap && live.get("binaryData").is_none() {
        return None;
    }
    let mut repaired = live.clone();
    match kind {
        Kind::Service => repair_service(&mut repaired, manifest),
        Kind::PodDisruptionBudget => remove(&mut repaired, manifest, BUDGET),
        Kind::Deployment | Kind::StatefulSet => repair_workload(&mut repaired, manifest, is_held),
        Kind::ConfigMap => remove_twins(&mut repaired, manifest),
        Kind::Secret | Kind::ServiceAccount | Kind::PersistentVolumeClaim | Kind::Pod => {}
    }
    merge_patch(live, &repaired)
}

/// Removes the fields that the manifest does not set.
fn remove(live: &mut Value, manifest: &Value, fields: &[Field]) {
    for (pointer, default) in fields {
        let is_foreign = live
            .pointer(pointer)
            .map(Value::to_string)
            .is_some_and(|value| value != *default);
        if !is_foreign || manifest.pointer(pointer).is_some_and(|value| !value.is_null()) {
            continue;
        }
        if let Some((parent, key)) = pointer.rsplit_once('/')
            && let Some(Value::Object(parent)) = live.pointer_mut(parent)
        {
            parent.remove(key);
        }
    }
}

/// Removes foreign ports. The type and its addresses change together: without them, the API server allocates others.
fn repair_service(live: &mut Value, manifest: &Value) {
    let wanted_type = manifest["spec"]["type"].as_str().unwrap_or("ClusterIP");
    let is_type_foreign = live["spec"]["type"]
        .as_str()
        .is_some_and(|live| live != wanted_type);
    remove(live, manifest, SERVICE);
    let key = |port: &Value| (port["port"].clone(), port["protocol"].clone());
    let wanted: Vec<_> = items(manifest, "/spec/ports").iter().map(key).collect();
    if let Some(Value::Array(ports)) = live.pointer_mut("/spec/ports") {
        ports.retain(|port| wanted.contains(&key(port)));
        if ports.is_empty() {
            // A Service without ports is refused.
            ports.extend(items(manifest, "/spec/ports").iter().cloned());
        }
    }
    if is_type_foreign {
        let spec = manifest["spec"].as_object();
        let addresses = ["clusterIP", "clusterIPs"].map(|name| (name, spec.and_then(|spec| spec.get(name))));
        live["spec"]["type"] = json!(wanted_type);
        for (name, value) in addresses {
            if let Some(value) = value {
                live["spec"][name] = value.clone();
            }
        }
    }
}

/// Repairs the Pod template, too, unless the rollout is queued: then `manifest` has a later template than the live one.
fn repair_workload(live: &mut Value, manifest: &Value, is_held: bool) {
    remove(live, manifest, WORKLOAD);
    if is_held {
        return;
    }
    let (volumes, containers) = ("/spec/template/spec/volumes", "/spec/template/spec/containers");
    for_each_twin(live, manifest, volumes, "name", |live, wanted| {
        restore(live, wanted, |field| field != "name");
    });
    for_each_twin(live, manifest, containers, "name", repair_container);
}

fn repair_container(live: &mut Value, wanted: &Value) {
    remove(live, wanted, CONTAINER);
    let all = |name: &str| -> Vec<_> {
        items(wanted, "/ports")
            .iter()
            .map(|port| port[name].clone())
            .collect()
    };
    let (names, numbers) = (all("name"), all("containerPort"));
    if let Some(Value::Array(ports)) = live.pointer_mut("/ports") {
        // Ports of one name are refused.
        ports.retain(|port| numbers.contains(&port["containerPort"]) || !names.contains(&port["name"]));
    }
    for_each_twin(live, wanted, "/ports", "containerPort", |live, wanted| {
        remove(live, wanted, PORT);
    });
    for_each_twin(live, wanted, "/volumeMounts", "mountPath", |live, wanted| {
        remove(live, wanted, MOUNT);
    });
    for_each_twin(live, wanted, "/env", "name", |live, wanted| {
        restore(live, wanted, |field| field == "value" || field == "valueFrom");
    });
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        if let (Some(live), Some(wanted)) = (live.get_mut(probe), wanted.get(probe)) {
            restore(live, wanted, |field| HANDLERS.contains(&field));
        }
    }
}

/// Restores a union, of whose fields the API accepts one: replaces all by those of the manifest if there is another one.
fn restore(live: &mut Value, wanted: &Value, is_member: impl Fn(&str) -> bool) {
    let (Some(live), Some(wanted)) = (live.as_object_mut(), wanted.as_object()) else {
        return;
    };
    let is_foreign = |field: &str| is_member(field) && !wanted.contains_key(field);
    if !live.keys().any(|field| is_foreign(field)) {
        return;
    }
    live.retain(|field, _| !is_member(field));
    let members = wanted.iter().filter(|(field, _)| is_member(field));
    live.extend(members.map(|(field, value)| (field.clone(), value.clone())));
}

/// Removes binary values whose keys have a text: the API refuses a key in both.
fn remove_twins(live: &mut Value, manifest: &Value) {
    if let Some(Value::Object(binary)) = live.pointer_mut("/binaryData") {
        binary.retain(|key, _| manifest["data"].get(key).is_none());
    }
}

fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Calls a function for each item of a live list that has an item of the same key in the manifest.
fn for_each_twin(
    live: &mut Value,
    manifest: &Value,
    pointer: &str,
    key: &str,
    mut repair: impl FnMut(&mut Value, &Value),
) {
    let wanted = items(manifest, pointer);
    let live = live.pointer_mut(pointer).and_then(Value::as_array_mut);
    for item in live.into_iter().flatten() {
        if let Some(wanted) = wanted.iter().find(|wanted| wanted[key] == item[key]) {
            repair(item, wanted);
        }
    }
}

/// Returns the JSON merge patch (RFC 7396) from one value to another; `None` if they are equal. Lists are replaced.
fn merge_patch(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let removed = old.keys().filter(|key| !new.contains_key(*key));
    let mut patch: Map<_, _> = removed.map(|key| (key.clone(), Value::Null)).collect();
    for (key, value) in new {
        let change = match old.get(key) {
            Some(before) => merge_patch(before, value),
            None => Some(value.clone()),
        };
        patch.extend(change.map(|change| (key.clone(), change)));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_pass_by_value, reason = "the tables read better")]

    use test_case::test_case;

    use super::*;

    fn manifest(kind: Kind) -> Value {
        match kind {
            Kind::Service => json!({"spec": {
                "type": "ClusterIP", "clusterIP": "10.0.0.7", "selector": {"a": "b"},
                "ports": [{"name": "registry", "port": 5000, "protocol": "TCP", "targetPort": "registry"}],
            }}),
            Kind::PodDisruptionBudget => json!({"spec": {"maxUnavailable": 1}}),
            Kind::ConfigMap => json!({"data": {"config.yml": "a"}}),
            _ => json!({"spec": {"replicas": 1, "template": {"spec": {
                "volumes": [{"name": "config", "configMap": {"name": "hub-config"}}],
                "containers": [{
                    "name": "mirror",
                    "ports": [{"name": "registry", "containerPort": 5000, "protocol": "TCP"}],
                    "env": [{"name": "A", "value": "1"}],
                    "volumeMounts": [{"name": "config", "mountPath": "/etc"}],
                    "livenessProbe": {"httpGet": {"path": "/livez"}},
                    "securityContext": {"capabilities": {"drop": ["ALL"]}},
                }],
            }}}}),
        }
    }

    /// Applies a merge patch.
    fn merge(value: &mut Value, patch: &Value) {
        let Some(patch) = patch.as_object() else {
            *value = patch.clone();
            return;
        };
        for (key, change) in patch {
            if change.is_null() {
                value.as_object_mut().unwrap().remove(key);
            } else {
                merge(&mut value[key], change);
            }
        }
    }

    /// Returns the repaired object: a live one that has been changed by a patch.
    fn repaired(kind: Kind, change: &Value) -> (Value, Option<Value>) {
        let (manifest, mut live) = (manifest(kind), manifest(kind));
        merge(&mut live, change);
        let patch = repair(kind, &live, &manifest, false);
        if let Some(patch) = &patch {
            merge(&mut live, patch);
        }
        (live, patch)
    }

    fn template(pod: Value) -> Value {
        json!({"spec": {"template": {"spec": pod}}})
    }

    #[test_case(Kind::Service, json!({"spec": {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}}))]
    #[test_case(Kind::Service, json!({"spec": {"publishNotReadyAddresses": true}}))]
    #[test_case(Kind::Service, json!({"spec": {"internalTrafficPolicy": "Local"}}))]
    #[test_case(Kind::Service, json!({"spec": {"type": "ExternalName", "externalName": "a.b", "clusterIP": null}}))]
    #[test_case(Kind::Service, json!({"spec": {"ports": [{"name": "registry", "port": 6000, "protocol": "TCP"}]}}))]
    #[test_case(Kind::PodDisruptionBudget, json!({"spec": {"minAvailable": 1}}))]
    #[test_case(Kind::ConfigMap, json!({"binaryData": {"config.yml": "YQ=="}}) ; "binary twin")]
    #[test_case(Kind::Deployment, json!({"spec": {"paused": true, "minReadySeconds": 9}}))]
    #[test_case(Kind::StatefulSet, json!({"spec": {"ordinals": {"start": 3}}}))]
    #[test_case(Kind::Deployment, template(json!({"hostNetwork": true, "nodeName": "a", "hostUsers": false})))]
    #[test_case(Kind::Deployment, template(json!({"readinessGates": [{"conditionType": "a"}]})))]
    fn foreign_field_is_removed(kind: Kind, change: Value) {
        let (live, _) = repaired(kind, &change);
        let mut expected = manifest(kind);
        for empty in ["binaryData"] {
            if live.get(empty).is_some() {
                expected[empty] = json!({});
            }
        }
        assert_eq!(live, expected);
    }

    #[test_case("securityContext", json!({"privileged": true, "capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}))]
    #[test_case("ports", json!([{"name": "registry", "containerPort": 5000, "protocol": "TCP", "hostPort": 80}]))]
    #[test_case("env", json!([{"name": "A", "value": "1", "valueFrom": {"fieldRef": {}}}]))]
    #[test_case("volumeMounts", json!([{"name": "config", "mountPath": "/etc", "subPath": "b"}]))]
    #[test_case("livenessProbe", json!({"httpGet": {"path": "/livez"}, "exec": {"command": ["a"]}}))]
    fn field_of_the_server_container_is_removed(field: &str, value: Value) {
        let mut container = manifest(Kind::Deployment)["spec"]["template"]["spec"]["containers"][0].clone();
        container[field] = value;
        let change = template(json!({"containers": [container]}));
        assert_eq!(repaired(Kind::Deployment, &change).0, manifest(Kind::Deployment));
    }

    #[test_case(json!({"name": "config", "configMap": {"name": "hub-config"}, "hostPath": {"path": "/"}}); "two sources")]
    #[test_case(json!({"name": "config", "hostPath": {"path": "/"}}); "another source")]
    fn own_volume_keeps_its_source_only(volume: Value) {
        let change = template(json!({"volumes": [volume]}));
        assert_eq!(repaired(Kind::Deployment, &change).0, manifest(Kind::Deployment));
    }

    /// A mirror that waits for a new version keeps its template, but no rights on the node.
    #[test]
    fn held_template_keeps_its_containers() {
        let mut live = manifest(Kind::Deployment);
        let volume = json!({"name": "config", "secret": {"secretName": "of-an-older-version"}});
        merge(
            &mut live,
            &template(json!({"hostNetwork": true, "volumes": [volume]})),
        );
        let patch = repair(Kind::Deployment, &live, &manifest(Kind::Deployment), true);
        assert_eq!(patch, Some(template(json!({"hostNetwork": null}))));
    }

    /// Additions that harm nothing stay, and the API server's defaults are no additions.
    #[test_case(Kind::Service, json!({"spec": {"sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}}))]
    #[test_case(Kind::Service, json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"loadBalancerSourceRanges": ["a"]}}))]
    #[test_case(Kind::ConfigMap, json!({"data": {"note": "kept"}, "binaryData": {"b": "YQ=="}}))]
    #[test_case(Kind::StatefulSet, json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}))]
    #[test_case(Kind::Deployment, template(json!({"hostAliases": [], "initContainers": [{"name": "a"}]})))]
    fn addition_stays(kind: Kind, change: Value) {
        assert_eq!(repaired(kind, &change).1, None);
    }

    #[test]
    fn sidecar_and_its_volume_stay() {
        let mut live = manifest(Kind::Deployment);
        let pod = &mut live["spec"]["template"]["spec"];
        let volumes = pod["volumes"].as_array_mut().unwrap();
        volumes.push(json!({"name": "logs", "hostPath": {"path": "/var/log"}}));
        let containers = pod["containers"].as_array_mut().unwrap();
        containers.push(json!({"name": "side", "securityContext": {"privileged": true}}));
        assert_eq!(
            repair(Kind::Deployment, &live, &manifest(Kind::Deployment), false),
            None
        );
    }
}
