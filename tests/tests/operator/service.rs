//! The Service that clients know: nodes hold its numbers.

use std::time::Duration;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::bench::{Bench, ephemeral, soon};

/// Addresses, node port and families of a Service.
fn numbers(service: &Service) -> (Vec<String>, Option<i32>) {
    let spec = service.spec.as_ref().unwrap();
    let port = spec.ports.as_ref().unwrap()[0].node_port;
    (spec.cluster_ips.clone().unwrap(), port)
}

fn with_service(service: Value) -> Value {
    let mut spec = ephemeral();
    spec["service"] = service;
    spec
}

async fn until_published(bench: &Bench) -> String {
    bench
        .until("hub", "an address", |mirror: &RegistryMirror| {
            let endpoint = mirror.status.as_ref()?.endpoint.as_ref()?;
            (!endpoint.cluster_ips.is_empty()).then(|| endpoint.url.clone())
        })
        .await
}

async fn until_made_again(bench: &Bench, before: &Service) -> Service {
    bench
        .until("hub", "another Service", |service: &Service| {
            (service.uid() != before.uid()).then(|| service.clone())
        })
        .await
}

/// With an operator that runs, and with one that starts later.
#[tokio::test]
async fn deleted_service_is_recreated_with_its_addresses() {
    let mut bench = Bench::start("service").await;
    for wanted in [
        json!({}),
        json!({"type": "NodePort"}),
        json!({"type": "LoadBalancer", "ipFamilyPolicy": "PreferDualStack"}),
    ] {
        bench.mirror("hub", with_service(wanted)).await;
        bench.until_accepted("hub").await;
        let url = until_published(&bench).await;
        let mut before = bench.get::<Service>("hub").await.unwrap();
        bench.delete::<Service>("hub").await;
        let again = until_made_again(&bench, &before).await;
        assert_eq!(numbers(&again), numbers(&before));

        before = again;
        bench.stop_operator().await;
        bench.delete::<Service>("hub").await;
        bench.start_operator().await;
        let again = until_made_again(&bench, &before).await;
        assert_eq!(numbers(&again), numbers(&before));
        bench.until_accepted("hub").await;
        assert_eq!(until_published(&bench).await, url);
        bench.until_nothing_is_written().await;
    }
}

/// The Service is deleted at any moment of the reconciles after a change of the mirror.
#[tokio::test]
async fn service_deleted_during_reconciles_keeps_its_numbers() {
    let bench = Bench::start("midway").await;
    bench
        .mirror("hub", with_service(json!({"type": "NodePort"})))
        .await;
    bench.until_accepted("hub").await;
    until_published(&bench).await;
    let first = bench.get::<Service>("hub").await.unwrap();
    let mut before = first.clone();
    for round in 0..10 {
        let label = json!({"spec": {"service": {"annotations": {"round": round.to_string()}}}});
        bench.merge::<RegistryMirror>("hub", label).await;
        tokio::time::sleep(Duration::from_millis(round * 3)).await;
        bench.delete::<Service>("hub").await;
        before = until_made_again(&bench, &before).await;
        assert_eq!(numbers(&before), numbers(&first), "round {round}");
    }
}

/// The mirror waits for the address, as nodes would pull from the other Service, and takes another only when the spec asks for one.
#[tokio::test]
async fn taken_address_is_reported_and_reclaimed() {
    let mut bench = Bench::start("taken").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    let url = until_published(&bench).await;
    let before = bench.get::<Service>("hub").await.unwrap();
    let address = numbers(&before).0.remove(0);
    bench.stop_operator().await;
    bench.delete::<Service>("hub").await;
    let thief =
        json!({"metadata": {"name": "thief"}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}});
    bench.apply::<Service>(thief).await;
    bench.start_operator().await;
    let reported = bench
        .until_hub(ConditionType::Accepted, "False", Reason::AddressTaken)
        .await;
    assert!(reported.message.contains(&url), "{}", reported.message);
    assert!(
        reported.message.contains("already allocated"),
        "{}",
        reported.message
    );
    bench
        .until_hub(ConditionType::Ready, "False", Reason::AddressTaken)
        .await;
    soon("a warning", async || {
        let events = bench.api::<Event>().list(&ListParams::default()).await.unwrap();
        let is_it = |event: &Event| {
            event.reason.as_deref() == Some("AddressTaken") && event.type_.as_deref() == Some("Warning")
        };
        events.iter().any(is_it).then_some(())
    })
    .await;
    assert_eq!(until_published(&bench).await, url, "the record stays");

    bench.delete::<Service>("thief").await;
    bench.stop_operator().await;
    bench.start_operator().await;
    bench.until_accepted("hub").await;
    let after = bench.get::<Service>("hub").await.unwrap();
    assert_eq!(numbers(&after).0, [address]);
}

/// An address that a different Service holds is given up for one that the spec requests.
#[tokio::test]
async fn taken_address_is_released_on_request() {
    let mut bench = Bench::start("given-up").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    until_published(&bench).await;
    let before = bench.get::<Service>("hub").await.unwrap();
    let address = numbers(&before).0.remove(0);
    bench.stop_operator().await;
    bench.delete::<Service>("hub").await;
    let service = |name: &str| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    let mut thief = service("thief");
    thief["spec"]["clusterIP"] = json!(address);
    bench.apply::<Service>(thief).await;
    // An address that is free a moment later.
    let free: Service = bench.apply(service("free")).await;
    let free = numbers(&free).0.remove(0);
    bench.delete::<Service>("free").await;
    bench.start_operator().await;
    bench
        .until_hub(ConditionType::Accepted, "False", Reason::AddressTaken)
        .await;
    bench
        .mirror("hub", with_service(json!({"clusterIP": free})))
        .await;
    bench.until_accepted("hub").await;
    let after = bench.get::<Service>("hub").await.unwrap();
    assert_eq!(numbers(&after).0.first(), Some(&free));
    bench
        .until("hub", "the new address", |mirror: &RegistryMirror| {
            let endpoint = mirror.status.as_ref()?.endpoint.as_ref()?;
            endpoint.url.contains(&free).then_some(())
        })
        .await;
}
