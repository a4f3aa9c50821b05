//! An autoscaler on a mirror, with a metrics API of the test's own behind the real aggregation layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use crds::RegistryMirror;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use testbed::control_plane::skip_on_existing_cluster;
use testbed::pki::Authority;
use testbed::tls_listener::TlsListener;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::bench::{Bench, ephemeral};
use crate::pods::kubelet;

/// A metrics API that reports the same memory use, in MiB, for every Pod.
#[derive(Clone)]
struct Metrics {
    client: Client,
    usage: Arc<AtomicU64>,
}

fn resources() -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.k8s.io/v1beta1",
        "resources": [{"name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"]}],
    })
}

async fn usage(State(metrics): State<Metrics>, Path(namespace): Path<String>) -> Json<Value> {
    let pods: Api<Pod> = Api::namespaced(metrics.client.clone(), &namespace);
    let pods = pods.list(&ListParams::default()).await.unwrap();
    let memory = format!("{}Mi", metrics.usage.load(Ordering::Relaxed));
    let item = |pod: &Pod| {
        json!({
            "metadata": {"name": pod.name_any(), "namespace": namespace, "labels": pod.labels()},
            "timestamp": jiff::Timestamp::now().to_string(), "window": "1s",
            "containers": [{"name": "mirror", "usage": {"cpu": "1m", "memory": memory}}],
        })
    };
    let items: Vec<_> = pods.iter().map(item).collect();
    Json(
        json!({"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items}),
    )
}

/// Serves the metrics API and makes it part of the cluster's.
async fn metrics_api(bench: &Bench, usage_of_each: Arc<AtomicU64>) -> AbortOnDropHandle<()> {
    let client = bench.namespace.client();
    let metrics = Metrics {
        client: client.clone(),
        usage: usage_of_each,
    };
    let app = Router::new()
        .route("/apis/metrics.k8s.io/v1beta1", get(async || Json(resources())))
        .route(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods",
            get(usage),
        )
        .with_state(metrics);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let leaf = Authority::new("metrics")
        .unwrap()
        .serving(&["localhost"])
        .unwrap();
    let listener = TlsListener::new(listener, leaf.acceptor().unwrap());
    let serving = tokio::spawn(async move { drop(axum::serve(listener, app).await) });

    // A Service of this type is the one that leads to a loopback address.
    let service = json!({
        "metadata": {"name": "metrics"},
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
    });
    bench.apply::<Service>(service).await;
    let registration = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": true,
            "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"name": "metrics", "namespace": bench.namespace.name(), "port": port},
        },
    });
    let services: Api<APIService> = Api::all(client);
    let params = PatchParams::apply("admin").force();
    services
        .patch("v1beta1.metrics.k8s.io", &params, &Patch::Apply(&registration))
        .await
        .unwrap();
    AbortOnDropHandle::new(serving)
}

async fn until_replicas(bench: &Bench, replicas: i32) {
    bench
        .until("hub", "decision", |hpa: &HorizontalPodAutoscaler| {
            let status = hpa.status.as_ref()?;
            (status.desired_replicas == replicas && status.current_replicas == Some(replicas)).then_some(())
        })
        .await;
    bench
        .until("hub", "as many servers", |mirror: &RegistryMirror| {
            let ready = mirror.status.as_ref()?.ready_replicas;
            (mirror.spec.replicas == replicas && ready == replicas).then_some(())
        })
        .await;
}

/// An autoscaler scales a mirror by its pods, up and down.
#[tokio::test]
async fn autoscaler_scales_mirror_up_and_down() {
    if skip_on_existing_cluster("autoscaler_scales_mirror_up_and_down") {
        return;
    }
    let bench = Bench::start("autoscaling").await;
    let _kubelet = kubelet(&bench).await;
    let usage = Arc::new(AtomicU64::new(150));
    let _serving = metrics_api(&bench, usage.clone()).await;
    bench.mirror("hub", ephemeral()).await;
    let target = json!({
        "metadata": {"name": "hub"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "name": "hub"},
            "minReplicas": 1, "maxReplicas": 2,
            "metrics": [{
                "type": "Resource",
                "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "100Mi"}},
            }],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    });
    bench.apply::<HorizontalPodAutoscaler>(target).await;
    until_replicas(&bench, 2).await;
    usage.store(10, Ordering::Relaxed);
    until_replicas(&bench, 1).await;
}
