//! The effects of values on the chart, and the API server's validation of all rendered objects.

use serde_json::{Value, json};
use testbed::control_plane::skip_on_existing_cluster;

use crate::cluster::Cluster;
use crate::helm::Helm;
use crate::monitoring::MONITORED;
use crate::{SHAPES, named};

/// All that is off by default, on.
pub(crate) const EVERYTHING: &[&str] = &[
    "--set=podMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true",
    "--set=replicas=2,fullnameOverride=op",
    "--set=podDisruptionBudget.enabled=true,extraEnv[0].name=HTTPS_PROXY,extraEnv[0].value=http://p:1",
    "--set=extraVolumes[0].name=x,extraVolumeMounts[0].name=x,extraVolumeMounts[0].mountPath=/x",
    "--set-json=extraVolumes[0].emptyDir={}",
    "--set=topologySpreadConstraints[0].maxSkew=1,topologySpreadConstraints[0].topologyKey=zone",
    "--set=topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway",
    "--set=networkPolicy.enabled=true,networkPolicy.from[0].namespaceSelector.matchLabels.a=b",
    "--set=networkPolicy.egress[0].ports[0].port=443,commonLabels.team=ours,deploymentAnnotations.a=b",
    "--set=strategy.type=Recreate,revisionHistoryLimit=0,terminationGracePeriodSeconds=60,hostUsers=false",
    "--set=automountServiceAccountToken=false,dnsPolicy=Default,dnsConfig.nameservers={192.0.2.1}",
    "--set=hostAliases[0].ip=192.0.2.1,hostAliases[0].hostnames={registry.test},extraArgs={--help}",
    "--set=extraEnvFrom[0].secretRef.name=proxy,serviceAccount.labels.a=b,metrics.labels.a=b,image.registry=r.test:5000",
    "--set=initContainers[0].name=first,initContainers[0].image=i,extraContainers[0].name=beside",
    "--set=extraContainers[0].image=i,extraObjects[0].apiVersion=v1,extraObjects[0].kind=Secret",
    "--set=extraObjects[0].metadata.name=mine,extraObjects[0].metadata.namespace=operators",
];
fn operators_pod(objects: &[Value]) -> &Value {
    &named(objects, "Deployment")[0]["spec"]["template"]["spec"]
}

/// Environment, volumes and spread constraints reach the operator's pod.
#[tokio::test]
async fn environment_volumes_and_spread_reach_operator_pod() {
    let helm = Helm::offline().await;
    let objects = helm.template(EVERYTHING).await.unwrap();
    let pod = operators_pod(&objects);
    let container = &pod["containers"][0];
    assert_eq!(container["env"][0]["name"], "HTTPS_PROXY");
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/x");
    assert_eq!(pod["volumes"][0]["name"], "x");
    let selected = &pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"];
    assert_eq!(selected["app.kubernetes.io/component"], "operator");
    let budget = &named(&objects, "PodDisruptionBudget")[0]["spec"];
    assert_eq!(budget["selector"]["matchLabels"], *selected);
}

/// The labels of users are added to those of the chart and never replace them.
#[tokio::test]
async fn user_labels_never_replace_the_charts() {
    let helm = Helm::offline().await;
    let own = "app\\.kubernetes\\.io/name=mine";
    let mut flags = EVERYTHING.to_vec();
    let mine = [
        "podLabels",
        "podMonitor.labels",
        "prometheusRule.labels",
        "dashboard.labels",
    ]
    .map(|labels| format!("--set={labels}.{own},{labels}.team=ours"));
    flags.extend(mine.iter().map(String::as_str));
    // A key that comes twice does not parse.
    let objects = helm.template(&flags).await.unwrap();
    let pod = &named(&objects, "Deployment")[0]["spec"]["template"];
    let labelled = ["PodMonitor", "PrometheusRule", "ConfigMap"].map(|kind| named(&objects, kind));
    let labelled: Vec<_> = labelled.into_iter().flatten().chain([pod]).collect();
    assert_eq!(labelled.len(), 5);
    for object in labelled {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/name"], "registry-mirror", "{labels}");
        assert_eq!(labels["team"], "ours", "{labels}");
    }
}

/// Every object has the common labels and is in the configured namespace.
#[tokio::test]
async fn objects_have_common_labels_and_namespace() {
    let helm = Helm::offline().await;
    let flags = [
        "--set=namespaceOverride=elsewhere,commonLabels.team=ours,commonLabels.app\\.kubernetes\\.io/name=mine",
        "--set=podMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true",
        "--set=podDisruptionBudget.enabled=true,networkPolicy.enabled=true",
    ];
    let objects = helm.template(&flags).await.unwrap();
    let pod = &named(&objects, "Deployment")[0]["spec"]["template"];
    for object in objects.iter().chain([pod]) {
        let (labels, namespace) = (&object["metadata"]["labels"], &object["metadata"]["namespace"]);
        assert_eq!(labels["team"], "ours", "{object}");
        assert_eq!(labels["app.kubernetes.io/name"], "registry-mirror", "{object}");
        assert!(namespace.is_null() || namespace == "elsewhere", "{object}");
        let subjects = object["subjects"].as_array().into_iter().flatten();
        assert!(
            subjects
                .into_iter()
                .all(|subject| subject["namespace"] == "elsewhere")
        );
    }
    let reported = operators_pod(&objects)["containers"][0]["args"]
        .as_array()
        .unwrap();
    assert!(
        reported.contains(&json!("--lease-namespace=elsewhere")),
        "{reported:?}"
    );
}

/// Each value reaches the field that it names.
#[tokio::test]
async fn values_reach_their_fields() {
    let helm = Helm::offline().await;
    let objects = helm.template(EVERYTHING).await.unwrap();
    let of = |kind: &str, path: &str| {
        named(&objects, kind)[0]
            .pointer(path)
            .cloned()
            .unwrap_or_default()
    };
    let pod = "/spec/template/spec";
    for (kind, path, expected) in [
        ("Deployment", "/metadata/annotations", json!({"a": "b"})),
        ("Deployment", "/spec/strategy", json!({"type": "Recreate"})),
        ("Deployment", "/spec/revisionHistoryLimit", json!(0)),
        (
            "Deployment",
            &format!("{pod}/terminationGracePeriodSeconds"),
            json!(60),
        ),
        ("Deployment", &format!("{pod}/hostUsers"), json!(false)),
        (
            "Deployment",
            &format!("{pod}/automountServiceAccountToken"),
            json!(false),
        ),
        ("Deployment", &format!("{pod}/dnsPolicy"), json!("Default")),
        (
            "Deployment",
            &format!("{pod}/dnsConfig/nameservers/0"),
            json!("192.0.2.1"),
        ),
        (
            "Deployment",
            &format!("{pod}/hostAliases/0/ip"),
            json!("192.0.2.1"),
        ),
        (
            "Deployment",
            &format!("{pod}/initContainers/0/name"),
            json!("first"),
        ),
        ("Deployment", &format!("{pod}/containers/1/name"), json!("beside")),
        (
            "Deployment",
            &format!("{pod}/containers/0/image"),
            json!("r.test:5000/registry-mirror:0.1.0"),
        ),
        (
            "Deployment",
            &format!("{pod}/containers/0/envFrom/0/secretRef/name"),
            json!("proxy"),
        ),
        ("ServiceAccount", "/metadata/labels/a", json!("b")),
        ("Service", "/metadata/labels/a", json!("b")),
        ("NetworkPolicy", "/spec/policyTypes", json!(["Ingress", "Egress"])),
        ("NetworkPolicy", "/spec/ingress/0/ports/0/port", json!("health")),
        (
            "NetworkPolicy",
            "/spec/ingress/0/from/0/namespaceSelector/matchLabels/a",
            json!("b"),
        ),
        ("NetworkPolicy", "/spec/egress/0/ports/0/port", json!(443)),
    ] {
        assert_eq!(of(kind, path), expected, "{kind} {path}");
    }
    let reported = of("Deployment", &format!("{pod}/containers/0/args"));
    assert_eq!(
        reported.as_array().and_then(|reported| reported.last()),
        Some(&json!("--help"))
    );
    assert!(
        named(&objects, "Secret")
            .iter()
            .any(|map| map["metadata"]["name"] == "mine")
    );
}

/// The `PodDisruptionBudget` uses `maxUnavailable` or `minAvailable`.
#[tokio::test]
async fn budget_uses_max_unavailable_or_min_available() {
    let helm = Helm::offline().await;
    for (flag, expected) in [
        ("a=b", json!({"maxUnavailable": 1})),
        (
            "podDisruptionBudget.maxUnavailable=0",
            json!({"maxUnavailable": 0}),
        ),
        ("podDisruptionBudget.minAvailable=1", json!({"minAvailable": 1})),
        (
            "podDisruptionBudget.minAvailable=50%",
            json!({"minAvailable": "50%"}),
        ),
    ] {
        let flag = format!("--set=podDisruptionBudget.enabled=true,commonLabels.{flag}")
            .replace("commonLabels.pod", "pod");
        let objects = helm.template(&[&flag]).await.unwrap();
        let mut budget = named(&objects, "PodDisruptionBudget")[0]["spec"].clone();
        let fields = budget.as_object_mut().unwrap();
        fields.remove("selector");
        assert_eq!(
            fields.remove("unhealthyPodEvictionPolicy"),
            Some(json!("AlwaysAllow"))
        );
        assert_eq!(budget, expected, "{flag}");
    }
}

/// `OpenShift` assigns users and groups to Pods, and refuses fixed ones.
#[tokio::test]
async fn openshift_pods_have_no_fixed_user() {
    let helm = Helm::offline().await;
    let api = "--api-versions=security.openshift.io/v1";
    for (flags, is_openshift) in [
        (&[][..], false),
        (&[api], true),
        (&["--set=openshift=true"], true),
        (&["--set=openshift=false", api], false),
    ] {
        let flags = [flags, &["--set=podSecurityContext.fsGroup=65532"]].concat();
        let objects = helm.template(&flags).await.unwrap();
        let tests = named(&objects, "Pod").into_iter().map(|pod| &pod["spec"]);
        for pod in tests.chain([operators_pod(&objects)]) {
            let context = &pod["securityContext"];
            for field in ["runAsUser", "runAsGroup", "fsGroup"] {
                assert_eq!(context[field].is_null(), is_openshift, "{flags:?}: {context}");
            }
            assert_eq!(context["runAsNonRoot"], true);
        }
        let reported = operators_pod(&objects)["containers"][0]["args"]
            .as_array()
            .unwrap();
        assert_eq!(
            reported.contains(&json!("--platform=openshift")),
            is_openshift,
            "{reported:?}"
        );
    }
}

/// Helm renders an extra object that is given as text.
#[tokio::test]
async fn text_object_is_rendered_by_helm() {
    let helm = Helm::offline().await;
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: \"{{ .Release.Name }}-mine\"}\n";
    let flag = format!("--set-json=extraObjects={}", json!([text]));
    let objects = helm.template(&[&flag]).await.unwrap();
    assert_eq!(named(&objects, "ConfigMap")[0]["metadata"]["name"], "rm-mine");
}

/// A name override replaces the chart's name in every name.
#[tokio::test]
async fn name_override_replaces_the_charts_name() {
    let helm = Helm::offline().await;
    let objects = helm.template(&["--set=nameOverride=mirrors"]).await.unwrap();
    assert_eq!(named(&objects, "Deployment")[0]["metadata"]["name"], "rm-mirrors");
}

/// The values set the replicas, the user and the name of the operator.
#[tokio::test]
async fn values_set_replicas_user_and_name() {
    let helm = Helm::offline().await;
    let flags = [
        "--set=replicas=2,fullnameOverride=mirrors-op,podSecurityContext.runAsUser=null",
        "--set=podSecurityContext.runAsGroup=null,securityContext.seLinuxOptions.level=s0",
    ];
    let objects = helm.template(&flags).await.unwrap();
    let deployment = named(&objects, "Deployment")[0];
    assert_eq!(deployment["metadata"]["name"], "mirrors-op");
    assert_eq!(deployment["spec"]["replicas"], 2);
    let pod = operators_pod(&objects);
    assert_eq!(
        pod["securityContext"],
        json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}})
    );
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["seLinuxOptions"]["level"], "s0");
    assert_eq!(
        container["securityContext"]["capabilities"]["drop"],
        json!(["ALL"])
    );
    let reported = container["args"].as_array().unwrap();
    assert!(
        reported.contains(&json!("--lease-name=mirrors-op")),
        "{reported:?}"
    );
}

/// The values set the period and the timeout of the probes.
#[tokio::test]
async fn values_set_probe_timing() {
    let helm = Helm::offline().await;
    let flags = ["--set=livenessProbe.periodSeconds=20,readinessProbe.timeoutSeconds=3"];
    let objects = helm.template(&flags).await.unwrap();
    let container = &operators_pod(&objects)["containers"][0];
    let liveness = &container["livenessProbe"];
    assert_eq!(liveness["httpGet"]["path"], "/livez");
    assert_eq!(
        (&liveness["periodSeconds"], &liveness["failureThreshold"]),
        (&json!(20), &json!(3))
    );
    let readiness = &container["readinessProbe"];
    assert_eq!(readiness["httpGet"]["path"], "/readyz");
    assert_eq!(
        (&readiness["timeoutSeconds"], &readiness["periodSeconds"]),
        (&json!(3), &json!(5))
    );
}

/// Invalid values of optional features are refused by their names.
#[tokio::test]
async fn invalid_optional_values_are_refused_by_name() {
    let helm = Helm::offline().await;
    for (flag, expected) in [
        ("--set=podMonitor.interval=often", "/podMonitor/interval"),
        ("--set=podMonitor.enable=true", "enable"),
        ("--set=nodeAgent.runtime=docker", "/nodeAgent/runtime"),
        ("--set=nodeAgent.namespaces={A}", "/nodeAgent/namespaces/0"),
        ("--set=nodeAgent.certsDir=certs.d", "/nodeAgent/certsDir"),
        ("--set=nodeAgent.certsDir=/etc/../root", "/nodeAgent/certsDir"),
        ("--set=nodeAgent.port=0", "/nodeAgent/port"),
        (
            "--set=podDisruptionBudget.maxUnavailable=-1",
            "/podDisruptionBudget/maxUnavailable",
        ),
        ("--set=extraEnv[0].value=b", "/extraEnv/0"),
        ("--set=nameOverride=A", "/nameOverride"),
        ("--set=namespaceOverride=a.b", "/namespaceOverride"),
        ("--set=commonLabels.a=1", "/commonLabels/a"),
        ("--set=image.registry=https://r.test", "/image/registry"),
        ("--set=strategy.type=Sometimes", "/strategy/type"),
        (
            "--set=strategy.rollingUpdate.maxSurge=lots",
            "/strategy/rollingUpdate/maxSurge",
        ),
        (
            "--set=terminationGracePeriodSeconds=0",
            "/terminationGracePeriodSeconds",
        ),
        ("--set=dnsPolicy=Mine", "/dnsPolicy"),
        ("--set=hostAliases[0].hostnames={a}", "/hostAliases/0"),
        ("--set=networkPolicy.from=all", "/networkPolicy/from"),
        ("--set=extraArgs=--help", "/extraArgs"),
        ("--set=extraObjects[0].kind=ConfigMap", "/extraObjects/0"),
        ("--set=extraContainers[0].image=i", "/extraContainers/0"),
        ("--set=podMonitor.scrapeTimeout=soon", "/podMonitor/scrapeTimeout"),
        (
            "--set=prometheusRule.extraRules[0].alert=Mine",
            "/prometheusRule/extraRules/0",
        ),
        (
            "--set=podDisruptionBudget.minAvailable=half",
            "/podDisruptionBudget/minAvailable",
        ),
        (
            "--set=livenessProbe.periodSeconds=0",
            "/livenessProbe/periodSeconds",
        ),
        ("--set=readinessProbe.httpGet.path=/", "httpGet"),
        ("--set=extraVolumeMounts[0].name=x", "/extraVolumeMounts/0"),
        (
            "--set=topologySpreadConstraints[0].maxSkew=1",
            "/topologySpreadConstraints/0",
        ),
    ] {
        let refused = helm.template(&[flag]).await.unwrap_err();
        assert!(refused.contains(expected), "{flag}: {refused}");
    }
}

/// The API server accepts every object of every variant of the values, to the last field.
#[tokio::test]
async fn api_server_accepts_every_rendered_object() {
    if skip_on_existing_cluster("api_server_accepts_every_rendered_object") {
        return;
    }
    let cluster = Cluster::start().await;
    for namespace in ["operators", "a", "b"] {
        cluster.restricted_namespace(namespace).await;
    }
    cluster.know_prometheus().await;
    let mut monitors = 0;
    for flags in SHAPES
        .iter()
        .map(|(flags, _)| *flags)
        .chain([EVERYTHING])
        .chain(MONITORED)
    {
        let objects = cluster.helm.template(flags).await.unwrap();
        monitors += named(&objects, "PodMonitor").len();
        let taken = cluster.dry_run(&objects).await;
        assert_eq!(taken, Ok(()), "{flags:?}");
    }
    assert_eq!(monitors, 6);
    // And it would say so.
    for (field, wrong) in [
        ("/spec/podMetricsEndpoints/0/intervall", json!("1m")),
        ("/spec/podMetricsEndpoints/0/interval", json!("often")),
    ] {
        let mut monitor = named(&cluster.helm.template(EVERYTHING).await.unwrap(), "PodMonitor")[0].clone();
        let (parent, name) = field.rsplit_once('/').unwrap();
        monitor.pointer_mut(parent).unwrap()[name] = wrong;
        cluster.dry_run(&[monitor]).await.unwrap_err();
    }
}
