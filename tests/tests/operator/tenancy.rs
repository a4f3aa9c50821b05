//! Users who may create `RegistryMirror`s and nothing else: what they can't have by them.

use std::time::Instant;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use testbed::control_plane::{dry_run, uses_existing_cluster};

use crate::bench::{Bench, IMAGE, condition, ephemeral, soon};

/// Returns the message of the rejection of the present spec.
async fn rejected(bench: &Bench, mirror: &str, reason: Reason) -> String {
    let rejection = bench.until(mirror, "a rejection", |mirror: &RegistryMirror| {
        let accepted = condition(mirror, ConditionType::Accepted)?;
        let is_it = accepted.status == "False"
            && accepted.reason == reason.as_str()
            && accepted.observed_generation == mirror.metadata.generation;
        is_it.then(|| accepted.message.clone())
    });
    rejection.await
}

/// Each of these gave a tenant more than a mirror before there was a policy.
#[tokio::test]
async fn spec_beyond_policy_is_rejected_and_serves_on() {
    let bench = Bench::start("beyond").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    let pods = [
        ("image", json!("evil.example/any:1"), "spec.pod.image"),
        (
            "priorityClassName",
            json!("system-node-critical"),
            "spec.pod.priorityClassName",
        ),
        (
            "annotations",
            json!({"k8s.v1.cni.cncf.io/networks": "storage"}),
            "spec.pod.annotations",
        ),
        ("labels", json!({"app": "payments"}), "spec.pod.labels"),
        (
            "tolerations",
            json!([{"operator": "Exists"}]),
            "spec.pod.tolerations",
        ),
        (
            "securityContext",
            json!({"appArmorProfile": {"type": "Unconfined"}}),
            "spec.pod.securityContext",
        ),
        (
            "affinity",
            json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}, "namespaceSelector": {}},
            ]}}),
            "spec.pod.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].namespaceSelector",
        ),
    ];
    for (field, value, path) in pods {
        let mut spec = ephemeral();
        spec["pod"] = json!({field: value});
        bench.mirror("hub", spec).await;
        let message = rejected(&bench, "hub", Reason::NotAllowed).await;
        assert!(message.starts_with(path), "{message}");
    }
    let mut many = ephemeral();
    many["replicas"] = json!(1000);
    bench.mirror("hub", many.clone()).await;
    let message = rejected(&bench, "hub", Reason::NotAllowed).await;
    assert!(message.contains("1000 replicas, but at most 50"), "{message}");
    bench
        .until_hub(ConditionType::Ready, "False", Reason::NotAllowed)
        .await;
    let deployment = bench.get::<Deployment>("hub").await.unwrap().spec.unwrap();
    let container = &deployment.template.spec.unwrap().containers[0];
    assert_eq!(
        (deployment.replicas, container.image.as_deref()),
        (Some(1), Some(IMAGE))
    );

    // A mirror that never was accepted gets no object.
    bench.mirror("new", many).await;
    bench
        .until_condition("new", ConditionType::Accepted, "False", Reason::NotAllowed)
        .await;
    assert!(bench.get::<ConfigMap>("new-config").await.is_none());
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
}

fn with_existing(claim: &str) -> Value {
    json!({
        "upstreams": [{"host": "quay.io"}],
        "storage": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"existingClaim": claim}},
    })
}

/// A PVC of another user, also one that gets the name only later.
#[tokio::test]
async fn existing_claim_is_used_with_its_annotation_only() {
    let bench = Bench::start("claims").await;
    bench.mirror("hub", with_existing("data")).await;
    let message = rejected(&bench, "hub", Reason::ReferenceNotFound).await;
    assert!(
        message.contains("registrymirror.io/allow-mirror: hub"),
        "{message}"
    );
    let claim = json!({
        "metadata": {"name": "data", "annotations": {"registrymirror.io/allow-mirror": "other"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    });
    bench.apply::<PersistentVolumeClaim>(claim).await;
    let message = rejected(&bench, "hub", Reason::NotAllowed).await;
    assert!(message.contains("does not allow this mirror"), "{message}");
    assert!(
        bench.get::<StatefulSet>("hub").await.is_none(),
        "no Pod mounts it"
    );
    let allow = json!({"metadata": {"annotations": {"registrymirror.io/allow-mirror": "hub"}}});
    bench.merge::<PersistentVolumeClaim>("data", allow).await;
    bench.until_accepted("hub").await;
    assert!(bench.get::<StatefulSet>("hub").await.is_some());
}

/// The key of a CA, certificates and issued credentials of another mirror.
#[tokio::test]
async fn secrets_of_the_operator_are_no_input_of_a_spec() {
    let bench = Bench::start("inputs").await;
    let mut spec = ephemeral();
    spec["tls"] = json!({"mode": "SelfSigned"});
    bench.mirror("hub", spec).await;
    bench.until_accepted("hub").await;
    assert!(bench.get::<Secret>("hub-ca-key").await.is_some());
    for secret in ["hub-ca-key", "hub-files", "hub-credentials"] {
        let reference = json!({"name": secret});
        let bundle = json!({"kind": "Secret", "name": secret, "key": "ca.crt"});
        let specs = [
            json!({"upstreams": [{"host": "quay.io", "credentialsSecretRef": reference}]}),
            json!({"upstreams": [{"host": "quay.io", "tls": {"caBundleRef": bundle}}]}),
            json!({"access": {"mode": "Basic", "htpasswdSecretRef": {"name": secret, "key": "htpasswd"}}}),
            json!({"tls": {"mode": "Secret", "secretName": secret}}),
            json!({"tls": {"mode": "SelfSigned", "clientCARef": bundle}}),
            json!({"pod": {"imagePullSecrets": [reference]}}),
        ];
        for change in specs {
            let mut spec = ephemeral();
            for (field, value) in change.as_object().unwrap() {
                spec[field] = value.clone();
            }
            bench.mirror("thief", spec).await;
            let message = rejected(&bench, "thief", Reason::NotAllowed).await;
            let belongs = format!("Secret {secret:?} belongs to the operator");
            assert!(message.contains(&belongs), "{change}: {message}");
        }
    }
}

/// A tenant who may not read Secrets learns if a Secret exists, and which key it lacks.
#[tokio::test]
async fn status_tells_no_keys_and_no_type_of_a_secret() {
    let bench = Bench::start("keys").await;
    let secret = json!({"metadata": {"name": "other"}, "type": "example.com/canary-type", "stringData": {"canary-key": "x"}});
    bench.apply::<Secret>(secret).await;
    bench.secret("plain", json!({"canary-key": "x"})).await;
    let mut cases = Vec::new();
    for secret in ["other", "plain"] {
        let reference = json!({"name": secret});
        let bundle = json!({"kind": "Secret", "name": secret, "key": "ca.crt"});
        cases.extend([
            json!({"upstreams": [{"host": "quay.io", "credentialsSecretRef": reference}]}),
            json!({"upstreams": [{"host": "quay.io", "tls": {"caBundleRef": bundle}}]}),
            json!({"access": {"mode": "Basic", "htpasswdSecretRef": {"name": secret, "key": "htpasswd"}}}),
            json!({"tls": {"mode": "Secret", "secretName": secret}}),
        ]);
    }
    for (number, case) in cases.iter().enumerate() {
        let name = format!("m{number}");
        let mut spec = ephemeral();
        for (field, value) in case.as_object().unwrap() {
            spec[field] = value.clone();
        }
        bench.mirror(&name, spec).await;
        let status = bench.until(&name, "what is wrong", |mirror: &RegistryMirror| {
            let status = mirror.status.as_ref()?;
            let says = |kind: ConditionType| {
                condition(mirror, kind).is_some_and(|condition| condition.status == "False")
            };
            let is_reported = says(ConditionType::Accepted) || says(ConditionType::CredentialsValid);
            is_reported.then(|| serde_json::to_string(status).unwrap())
        });
        let status = status.await;
        assert!(!status.contains("canary"), "{case}: {status}");
    }
}

/// Applies docs/tenant-policy.yaml.
async fn apply_example_policy(client: &kube::Client) {
    let example = include_str!("../../../docs/tenant-policy.yaml");
    for document in serde_saphyr::from_multiple::<Value>(example).unwrap() {
        let object: DynamicObject = serde_json::from_value(document.clone()).unwrap();
        let kind = object.types.as_ref().unwrap().kind.clone();
        let resource = ApiResource {
            group: "admissionregistration.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "admissionregistration.k8s.io/v1".to_owned(),
            plural: if kind.ends_with("Binding") {
                "validatingadmissionpolicybindings".to_owned()
            } else {
                "validatingadmissionpolicies".to_owned()
            },
            kind,
        };
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        let name = document["metadata"]["name"].as_str().unwrap();
        api.patch(
            name,
            &PatchParams::apply("admin").force(),
            &Patch::Apply(&document),
        )
        .await
        .unwrap();
    }
}

/// Installs the example policy, and returns a client of a user who may create mirrors.
async fn tenant_with_policy(bench: &Bench) -> kube::Client {
    apply_example_policy(&bench.namespace.client()).await;
    let user = format!("tenant-of-{}", bench.namespace);
    let rules =
        json!([{"apiGroups": ["registrymirror.io"], "resources": ["registrymirrors"], "verbs": ["create"]}]);
    bench
        .apply::<Role>(json!({"metadata": {"name": "tenant"}, "rules": rules}))
        .await;
    let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"});
    let binding = json!({"metadata": {"name": "tenant"}, "roleRef": role, "subjects": [subject]});
    bench.apply::<RoleBinding>(binding).await;
    bench
        .control_plane
        .client_as(&user, &["system:authenticated"])
        .await
}

/// The example for administrators, which docs/security.md names.
#[tokio::test]
async fn example_policy_for_tenants_limits_tenants_alone() {
    if uses_existing_cluster() {
        return;
    }
    let bench = Bench::idle("tenants").await;
    let client = bench.namespace.client();
    let tenant = tenant_with_policy(&bench).await;
    let create = async |client: kube::Client, upstream: &Value, service: &Value| {
        let mut spec = ephemeral();
        spec["upstreams"] = json!([upstream]);
        spec["service"] = service.clone();
        let mirror = RegistryMirror::new("hub", serde_json::from_value(spec).unwrap());
        let mirrors = Api::<RegistryMirror>::namespaced(client, bench.namespace.name());
        mirrors
            .create(&dry_run(), &mirror)
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let (internal, plain) = (json!({"type": "ClusterIP"}), json!({"host": "quay.io"}));
    let elsewhere = json!({"host": "quay.io", "remoteURL": "https://evil.example"});
    soon("the policy", async || {
        let refused = create(tenant.clone(), &elsewhere, &internal).await.err()?;
        refused.contains("remoteURL").then_some(())
    })
    .await;
    create(tenant.clone(), &plain, &internal).await.unwrap();
    let own = json!({"host": "quay.io", "credentialsSecretRef": {"name": "registry-quay"}});
    create(tenant.clone(), &own, &internal).await.unwrap();
    for (upstream, service, expected) in [
        (json!({"host": "evil.example"}), &internal, "may be mirrored"),
        (
            json!({"host": "quay.io", "tls": {"insecureSkipVerify": true}}),
            &internal,
            "insecureSkipVerify",
        ),
        (
            json!({"host": "quay.io", "credentialsSecretRef": {"name": "database"}}),
            &internal,
            "begin with registry-",
        ),
        (
            plain.clone(),
            &json!({"type": "NodePort"}),
            "inside of the cluster",
        ),
    ] {
        let refused = create(tenant.clone(), &upstream, service).await.unwrap_err();
        assert!(refused.contains(expected), "{refused}");
    }
    let mut apart = ephemeral();
    apart["pod"] = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}, "namespaceSelector": {}},
    ]}}});
    let apart = RegistryMirror::new("apart", serde_json::from_value(apart).unwrap());
    let mirrors = Api::<RegistryMirror>::namespaced(tenant.clone(), bench.namespace.name());
    let refused = mirrors
        .create(&PostParams::default(), &apart)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("Pods of other namespaces"), "{refused}");
    create(client, &elsewhere, &internal).await.unwrap();
}

/// With the example policy, a tenant's Secret of any kind has a name that the administrator chose, and a bucket no endpoint.
#[tokio::test]
async fn example_policy_limits_buckets_and_secrets() {
    if uses_existing_cluster() {
        return;
    }
    let bench = Bench::idle("tenants-buckets").await;
    let tenant = tenant_with_policy(&bench).await;
    let create_spec = async |fields: Value| {
        let mut spec = ephemeral();
        for (field, value) in fields.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let mirror = RegistryMirror::new("hub", serde_json::from_value(spec).unwrap());
        let mirrors = Api::<RegistryMirror>::namespaced(tenant.clone(), bench.namespace.name());
        let created = mirrors.create(&dry_run(), &mirror).await;
        created.map(drop).map_err(|error| error.to_string())
    };
    let bucket = |name: &str, s3: Value| {
        let store = json!({"s3": s3, "credentials": {"secretRef": {"name": name}}});
        json!({"storage": {"type": "ObjectStore", "objectStore": store}})
    };
    let (public, elsewhere) = (
        json!({"bucket": "b", "region": "r"}),
        json!({"bucket": "b", "endpoint": "https://evil.example"}),
    );
    soon("the policy", async || {
        let refused = create_spec(bucket("database", public.clone())).await.err()?;
        refused.contains("begin with registry-").then_some(())
    })
    .await;
    create_spec(bucket("registry-bucket", public)).await.unwrap();
    for (fields, expected) in [
        (
            bucket("registry-bucket", elsewhere),
            "endpoints are for administrators",
        ),
        (
            json!({"access": {"mode": "Basic", "htpasswdSecretRef": {"name": "database"}}}),
            "begin with registry-",
        ),
        (
            json!({"pod": {"imagePullSecrets": [{"name": "database"}]}}),
            "begin with registry-",
        ),
    ] {
        let refused = create_spec(fields).await.unwrap_err();
        assert!(refused.contains(expected), "{refused}");
    }
}

/// Measures the time until a new mirror has its status while the operator reads 80 mirrors of another namespace, each with
/// a CA bundle of 0.7 MB: `cargo test --workspace --test operator large_bundles -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn large_bundles_delay_no_other_namespace() {
    const MIRRORS: usize = 80;
    let (mut bench, other) = (Bench::idle("bundles").await, Bench::idle("neighbour").await);
    bench.cover(&other).await;
    let certificate = include_str!("../../../operator/tests/specs/authority.pem");
    let bundle = certificate.repeat(700_000 / certificate.len());
    let name = |number: usize| format!("large-{number}");
    for number in 0..MIRRORS {
        let map = json!({"metadata": {"name": name(number)}, "data": {"ca.crt": bundle}});
        bench.apply::<ConfigMap>(map).await;
        let mut spec = ephemeral();
        let bundle = json!({"kind": "ConfigMap", "name": name(number), "key": "ca.crt"});
        spec["upstreams"] = json!([{"host": "a.example", "tls": {"caBundleRef": bundle}}]);
        bench.mirror(&name(number), spec).await;
    }
    bench.start_operator().await;
    bench.until_accepted(&name(0)).await;
    let started = Instant::now();
    other.mirror("small", ephemeral()).await;
    other.until_accepted("small").await;
    let took = started.elapsed();
    let all = bench
        .api::<RegistryMirror>()
        .list(&ListParams::default())
        .await
        .unwrap();
    let is_accepted = |mirror: &&RegistryMirror| condition(mirror, ConditionType::Accepted).is_some();
    let done = all.iter().filter(is_accepted).count();
    for number in 0..MIRRORS {
        bench.until_accepted(&name(number)).await;
    }
    let total = started.elapsed();
    println!("accepted after {took:?}, when {done} of {MIRRORS} large mirrors were; these took {total:?}");
}

/// Bundles that fit into their own objects, and not into the Secret of the servers, are reported with their sizes.
#[tokio::test]
async fn oversized_bundles_are_rejected_with_sizes() {
    let bench = Bench::start("oversized").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    let certificate = include_str!("../../../operator/tests/specs/authority.pem");
    let bundle = certificate.repeat(600_000 / certificate.len());
    for name in ["one", "two"] {
        bench
            .apply::<ConfigMap>(json!({"metadata": {"name": name}, "data": {"ca.crt": bundle}}))
            .await;
    }
    let upstream = |host: &str, bundle: &str| json!({"host": host, "tls": {"caBundleRef": {"kind": "ConfigMap", "name": bundle, "key": "ca.crt"}}});
    let mut spec = ephemeral();
    spec["upstreams"] = json!([upstream("a.example", "one"), upstream("b.example", "two")]);
    bench.mirror("hub", spec.clone()).await;
    let message = rejected(&bench, "hub", Reason::ReferenceMalformed).await;
    for part in [
        "Secret \"hub-files\" would have ",
        "at most 1048576",
        "ca-a.example.crt ",
        "use smaller CA bundles",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(
        bench.get::<Deployment>("hub").await.is_some(),
        "its servers continue"
    );
    spec["upstreams"] = json!([upstream("a.example", "one")]);
    bench.mirror("hub", spec).await;
    bench.until_accepted("hub").await;
}
