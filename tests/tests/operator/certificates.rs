//! Mirrors that serve with certificates of their own.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use mirror::clock::Clock;
use operator::certificates::CertificateLifetimes;
use operator::run::Options;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use testbed::control_plane::skip_on_existing_cluster;
use testbed::scratch::Scratch;
use testbed::skopeo;
use testbed::upstream::{self, Upstream};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::bench::{Bench, ephemeral, push_one, soon, text};
use crate::pods::{address, kubelet, pods, restarts};

const HOUR: Duration = Duration::from_hours(1);

fn self_signed() -> Value {
    let mut spec = ephemeral();
    spec["tls"] = json!({"mode": "SelfSigned"});
    spec
}

/// A mirror with a certificate of its own, once all is made; what is reported of the certificate.
async fn make_mirror(bench: &Bench) -> Condition {
    bench.mirror("hub", self_signed()).await;
    bench.until_accepted("hub").await;
    bench
        .until("hub-hosts", "files for nodes", |map: &ConfigMap| {
            map.data.as_ref()?.get("ca.crt").cloned()
        })
        .await;
    bench
        .until_hub(ConditionType::TLSReady, "True", Reason::CertificateReady)
        .await
}

async fn published(bench: &Bench) -> String {
    let map = bench.get::<ConfigMap>("hub-ca").await.unwrap();
    map.data.unwrap().remove("ca.crt").unwrap()
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap()
}

/// The chain that a client is shown who trusts these authorities and asks for this name; `None` where it refuses.
async fn shown(
    server: SocketAddr,
    authorities: &[CertificateDer<'static>],
    name: &str,
) -> Option<Vec<CertificateDer<'static>>> {
    testbed::install_crypto_provider();
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).unwrap();
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TcpStream::connect(server).await.ok()?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .ok()?;
    let (_, connection) = stream.get_ref();
    Some(
        connection
            .peer_certificates()?
            .iter()
            .cloned()
            .map(CertificateDer::into_owned)
            .collect(),
    )
}

fn registry(pod: &Pod) -> SocketAddr {
    format!("{}:5000", address(pod)).parse().unwrap()
}

/// Images are pulled over TLS by name, cluster IP and load balancer, and no pod mounts the key of the CA.
#[tokio::test]
async fn tls_pulls_work_by_every_address() {
    let bench = Bench::start("own").await;
    let _kubelet = kubelet(&bench).await;
    let upstream = Upstream::start(upstream::Options::default()).await.unwrap();
    let scratch = Scratch::new("own").unwrap();
    push_one(&upstream, 1).await;
    let mut spec = self_signed();
    spec["upstreams"] = json!([{"host": "registry.example.com", "remoteURL": upstream.url()}]);
    spec["service"] = json!({"type": "LoadBalancer"});
    bench.mirror("hub", spec).await;
    bench.until_ready().await;
    bench
        .until_hub(ConditionType::TLSReady, "True", Reason::CertificateReady)
        .await;
    let pod = pods(&bench).await.remove(0);
    let authorities = certificates(&published(&bench).await);
    let service = bench.get::<Service>("hub").await.unwrap().spec.unwrap();
    let namespace = bench.namespace.name();
    for name in [
        "hub",
        &format!("hub.{namespace}.svc"),
        &format!("{}.hub-headless.{namespace}.svc.cluster.local", pod.name_any()),
        service.cluster_ip.as_deref().unwrap(),
    ] {
        assert!(
            shown(registry(&pod), &authorities, name).await.is_some(),
            "{name}"
        );
    }
    assert!(shown(registry(&pod), &authorities, "other").await.is_none());
    let volumes = pod.spec.clone().unwrap().volumes.unwrap();
    assert!(!serde_json::to_string(&volumes).unwrap().contains("hub-ca-key"));
    let status = bench.get::<RegistryMirror>("hub").await.unwrap().status.unwrap();
    assert_eq!(status.endpoint.unwrap().ca_config_map.as_deref(), Some("hub-ca"));
    let hosts = bench.get::<ConfigMap>("hub-hosts").await.unwrap().data.unwrap();
    assert_eq!(hosts["ca.crt"], published(&bench).await);
    assert!(hosts["registry.example.com.hosts.toml"].contains("ca = \"ca.crt\""));

    // The test is the load balancer: it gives the Service the address that skopeo can reach.
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": address(&pod)}]}}});
    let services = bench.api::<Service>();
    services
        .patch_status("hub", &PatchParams::default(), &Patch::Merge(&ingress))
        .await
        .unwrap();
    soon("a certificate for the new address", async || {
        shown(registry(&pod), &authorities, &address(&pod)).await
    })
    .await;
    let directory = scratch.subdirectory("authorities").unwrap();
    fs::write(directory.join("ca.crt"), published(&bench).await).unwrap();
    let image = format!("{}/team/app:one", registry(&pod));
    skopeo::pull_checked(&image, None, &directory, &scratch.path().join("pulled"))
        .await
        .unwrap();
    let nothing = scratch.subdirectory("nothing").unwrap();
    let unknown = skopeo::pull_checked(&image, None, &nothing, &scratch.path().join("refused")).await;
    assert!(unknown.unwrap_err().to_string().contains("certificate"));
    let after = pods(&bench).await.remove(0);
    assert_eq!((after.uid(), restarts(&after)), (pod.uid(), 0));
}

/// Moves the operator's clock over two thirds of a CA's life. Clients keep the real time, in which every certificate that
/// servers present has to be valid, and verify with the bundle that was published before the next CA signed.
#[tokio::test]
async fn tls_renewal_fails_no_connection() {
    let mut bench = Bench::idle("renewal").await;
    let clock = Clock::behind(15 * HOUR);
    bench.options = Options {
        clock: clock.clone(),
        lifetimes: CertificateLifetimes {
            ca: 18 * HOUR,
            serving: Duration::from_mins(72),
        },
        ..Options::default()
    };
    bench.start_operator().await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("hub", self_signed()).await;
    bench.until_ready().await;
    let pod = pods(&bench).await.remove(0);
    let (server, first) = (registry(&pod), certificates(&published(&bench).await));
    let key = text(&bench.get::<Secret>("hub-ca-key").await.unwrap(), "tls.key");

    // After a third of its life: the next CA is published, and signs nothing.
    look_at(&bench, &clock, 9 * HOUR + Duration::from_mins(40)).await;
    let both = soon("two authorities", async || {
        let authorities = certificates(&published(&bench).await);
        (authorities.len() == 2).then_some(authorities)
    })
    .await;
    let second = vec![
        both.iter()
            .find(|authority| !first.contains(authority))
            .unwrap()
            .clone(),
    ];
    // The real time: the certificate is renewed, by the first one.
    look_at(&bench, &clock, 5 * HOUR + Duration::from_mins(20)).await;
    soon("a certificate of the first", async || {
        shown(server, &first, "hub").await
    })
    .await;
    assert!(
        shown(server, &second, "hub").await.is_none(),
        "the second signs later"
    );
    assert_eq!(
        text(&bench.get::<Secret>("hub-ca-key").await.unwrap(), "tls.key"),
        key
    );

    let (connected, failed) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let clients = tokio::spawn({
        let both = both.clone();
        let (connected, failed) = (connected.clone(), failed.clone());
        async move {
            loop {
                let counter = match shown(server, &both, "hub").await {
                    Some(_) => &connected,
                    None => &failed,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    // Both are due: the second CA signs from now on, and issues another certificate.
    look_at(&bench, &clock, Duration::from_mins(50)).await;
    let chain = soon("a certificate of the second", async || {
        shown(server, &second, "hub").await
    })
    .await;
    assert_eq!(chain.len(), 1, "no CA is presented");
    let seen = connected.load(Ordering::Relaxed);
    soon("clients after it", async || {
        (connected.load(Ordering::Relaxed) > seen + 10).then_some(())
    })
    .await;
    clients.abort();
    assert_eq!(
        failed.load(Ordering::Relaxed),
        0,
        "of {} connections",
        connected.load(Ordering::Relaxed)
    );
    let after = pods(&bench).await.remove(0);
    assert_eq!((after.uid(), restarts(&after)), (pod.uid(), 0));
}

/// Moves the operator's clock, and has it look.
async fn look_at(bench: &Bench, clock: &Clock, later: Duration) {
    clock.advance(later);
    let looked = json!({"metadata": {"annotations": {"checked-at": clock.now().to_string()}}});
    bench.merge::<ConfigMap>("hub-ca", looked).await;
}

/// An operator that starts again keeps the CA and the certificate.
#[tokio::test]
async fn operator_restart_keeps_ca_and_certificate() {
    if skip_on_existing_cluster("operator_restart_keeps_ca_and_certificate") {
        return;
    }
    let mut bench = Bench::start("kept").await;
    let status = make_mirror(&bench).await;
    // The workload's controller has its say, too.
    bench
        .until("hub", "one Pod", |mirror: &RegistryMirror| {
            (mirror.status.as_ref()?.replicas == 1).then_some(())
        })
        .await;
    bench.until_nothing_is_written().await;
    bench.stop_operator().await;
    let mark = bench.mark().await;
    bench.start_operator().await;
    soon("a look", async || (bench.reconciles() > 0).then_some(())).await;
    assert_eq!(bench.writes(mark), [""; 0]);
    let mirror = bench.get::<RegistryMirror>("hub").await.unwrap();
    let now = crate::bench::condition(&mirror, ConditionType::TLSReady).unwrap();
    assert_eq!(now.message, status.message);
}

/// A user's Secret with the name of the CA's is not changed, and nothing is created.
#[tokio::test]
async fn users_ca_secret_blocks_the_mirror() {
    let bench = Bench::start("authority").await;
    let before = bench.secret("hub-ca-key", json!({"tls.key": "mine"})).await;
    bench.mirror("hub", self_signed()).await;
    let refused = bench
        .until_hub(ConditionType::Accepted, "False", Reason::NameConflict)
        .await;
    assert!(
        refused.message.contains("Secret hub-ca-key"),
        "{}",
        refused.message
    );
    assert!(bench.get::<Service>("hub").await.is_none());
    let after = bench.get::<Secret>("hub-ca-key").await.unwrap();
    assert_eq!(after.resource_version(), before.resource_version());
}

/// The begin and the end of a certificate's validity are reported in time.
#[tokio::test]
async fn certificate_validity_is_reported_in_time() {
    let mut bench = Bench::idle("end").await;
    let clock = Clock::system();
    bench.options.clock = clock.clone();
    bench.start_operator().await;
    bench.secret("serving", pair(&clock, 2 * HOUR, HOUR)).await;
    let mut spec = ephemeral();
    spec["tls"] = json!({"mode": "Secret", "secretName": "serving"});
    bench.mirror("hub", spec).await;
    let early = bench
        .until_hub(ConditionType::TLSReady, "False", Reason::NotYetValid)
        .await;
    assert!(early.message.contains("not valid before 2"), "{}", early.message);
    bench
        .until_hub(ConditionType::Ready, "False", Reason::NotYetValid)
        .await;
    // Reconciled a few seconds before it begins, and before it ends, for another reason; then only time passes.
    look_at(&bench, &clock, Duration::from_secs(3596)).await;
    bench
        .until_hub(ConditionType::TLSReady, "True", Reason::CertificateReady)
        .await;
    look_at(&bench, &clock, Duration::from_secs(3596)).await;
    bench
        .until_hub(ConditionType::TLSReady, "False", Reason::Expired)
        .await;
}

const DAY: Duration = Duration::from_hours(24);

/// A mirror with a certificate of its own, under a clock of the test's.
async fn with_own_certificate(name: &str) -> (Bench, Clock) {
    let mut bench = Bench::idle(name).await;
    let clock = Clock::system();
    bench.options.clock = clock.clone();
    bench.start_operator().await;
    make_mirror(&bench).await;
    (bench, clock)
}

async fn delivered(bench: &Bench) -> String {
    text(&bench.get::<Secret>("hub-files").await.unwrap(), "serving.crt").unwrap()
}

/// Returns the versions of the objects that must not change.
async fn versions(bench: &Bench) -> [Option<String>; 3] {
    [
        bench
            .get::<ConfigMap>("hub-config")
            .await
            .unwrap()
            .resource_version(),
        bench
            .get::<Secret>("hub-credentials")
            .await
            .unwrap()
            .resource_version(),
        bench.get::<Service>("hub").await.unwrap().resource_version(),
    ]
}

/// The certificates of a mirror with a rejected spec are renewed, and nothing else changes.
#[tokio::test]
async fn rejected_spec_still_renews_certificates() {
    let (bench, clock) = with_own_certificate("rejected-own").await;
    let mut spec = self_signed();
    spec["upstreams"][0]["tls"] = json!({"caBundleRef": {"kind": "ConfigMap", "name": "nowhere"}});
    spec["cache"] = json!({"tagTTL": "10s"});
    bench.mirror("hub", spec).await;
    bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceNotFound)
        .await;
    let (first, untouched) = (delivered(&bench).await, versions(&bench).await);
    look_at(&bench, &clock, 61 * DAY).await;
    let second = soon("another certificate", async || {
        let now = delivered(&bench).await;
        (now != first).then_some(now)
    })
    .await;
    let observed = bench
        .until_hub(ConditionType::TLSReady, "True", Reason::CertificateReady)
        .await;
    assert!(
        observed.message.starts_with("certificate valid until"),
        "{}",
        observed.message
    );
    assert_eq!(certificates(&published(&bench).await).len(), 1);

    // After a third of the CA's life, the next one is published.
    look_at(&bench, &clock, 310 * DAY).await;
    soon("two authorities, for nodes too", async || {
        let hosts = bench.get::<ConfigMap>("hub-hosts").await.unwrap().data.unwrap();
        let published = published(&bench).await;
        (certificates(&published).len() == 2 && hosts["ca.crt"] == published).then_some(())
    })
    .await;
    assert_ne!(delivered(&bench).await, second);
    assert_eq!(versions(&bench).await, untouched);
    let refused = bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceNotFound)
        .await;
    assert!(refused.message.contains("nowhere"), "{}", refused.message);
}

/// The expiry of a paused mirror's certificate is reported in time, and it is renewed after the pause.
#[tokio::test]
async fn paused_mirror_certificate_is_reported_then_renewed() {
    if skip_on_existing_cluster("paused_mirror_certificate_is_reported_then_renewed") {
        return;
    }
    let (bench, clock) = with_own_certificate("paused-own").await;
    let paused = |yes: bool| json!({"spec": {"paused": yes}});
    bench.merge::<RegistryMirror>("hub", paused(true)).await;
    bench
        .until_hub(ConditionType::Paused, "True", Reason::PausedBySpec)
        .await;
    let (first, mark) = (delivered(&bench).await, bench.mark().await);
    look_at(&bench, &clock, 76 * DAY).await;
    let observed = bench
        .until_hub(ConditionType::TLSReady, "True", Reason::Expiring)
        .await;
    assert!(
        observed.message.contains("set spec.paused to false"),
        "{}",
        observed.message
    );
    let events = bench.api::<k8s_openapi::api::events::v1::Event>();
    soon("a warning", async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        let mut events = events.iter();
        let warned = events.any(|event| {
            event.reason.as_deref() == Some("Expiring") && event.type_.as_deref() == Some("Warning")
        });
        warned.then_some(())
    })
    .await;
    look_at(&bench, &clock, 15 * DAY).await;
    bench
        .until_hub(ConditionType::TLSReady, "False", Reason::Expired)
        .await;
    bench
        .until_hub(ConditionType::Ready, "False", Reason::Expired)
        .await;
    assert_eq!(delivered(&bench).await, first);
    let writes = bench.writes(mark);
    assert!(
        writes.iter().all(|write| write.ends_with("hub status")),
        "{writes:?}"
    );

    bench.merge::<RegistryMirror>("hub", paused(false)).await;
    bench
        .until_hub(ConditionType::TLSReady, "True", Reason::CertificateReady)
        .await;
    assert_ne!(delivered(&bench).await, first);
}

fn pair(clock: &Clock, from_now: Duration, life: Duration) -> Value {
    let issued = rcgen::CertificateParams::new(vec!["hub".to_owned()]).map(|mut params| {
        let now = u64::try_from(clock.now().as_second()).unwrap();
        let epoch = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now);
        (params.not_before, params.not_after) = (epoch + from_now - life, epoch + from_now);
        params
    });
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = issued.unwrap().self_signed(&key).unwrap();
    json!({"tls.crt": certificate.pem(), "tls.key": key.serialize_pem(), "ca.crt": certificate.pem()})
}

/// A Secret's new certificate reaches the servers of a rejected spec ahead of the old one's end.
#[tokio::test]
async fn secret_renewal_reaches_servers_of_rejected_spec() {
    let mut bench = Bench::idle("rejected-secret").await;
    let clock = Clock::system();
    bench.options.clock = clock.clone();
    bench.start_operator().await;
    bench.secret("serving", pair(&clock, 60 * DAY, 60 * DAY)).await;
    let mut spec = ephemeral();
    spec["tls"] = json!({"mode": "Secret", "secretName": "serving"});
    bench.mirror("hub", spec.clone()).await;
    bench
        .until_hub(ConditionType::TLSReady, "True", Reason::CertificateReady)
        .await;
    spec["upstreams"][0]["tls"] = json!({"caBundleRef": {"kind": "ConfigMap", "name": "nowhere"}});
    bench.mirror("hub", spec).await;
    bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceNotFound)
        .await;
    let first = delivered(&bench).await;
    bench.secret("serving", pair(&clock, 90 * DAY, 90 * DAY)).await;
    bench.until_looks(2).await;
    assert_eq!(
        delivered(&bench).await,
        first,
        "the one that servers have is good for long"
    );
    look_at(&bench, &clock, 50 * DAY).await;
    soon("the new certificate", async || {
        (delivered(&bench).await != first).then_some(())
    })
    .await;
    bench
        .until_hub(ConditionType::TLSReady, "True", Reason::CertificateReady)
        .await;
}
