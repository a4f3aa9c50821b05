//! Certificates of a mirror's own, over years, as clients see them that verify what they are shown.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crds::RegistryMirror;
use k8s_openapi::jiff::Timestamp;
use operator::{
    certificates::{self, CertificateLifetimes},
    dereference::{Contents, References},
    desired,
    observed::Observed,
    peer_secret,
    validate::{self, Serving},
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::json;
use test_case::test_case;

const DAY: i64 = 24 * 3600;
/// The first second of the test's clock, since the Unix epoch.
const START: i64 = 1_700_000_000;

fn mirror() -> RegistryMirror {
    let object = json!({
        "metadata": {"name": "hub", "namespace": "mirrors"},
        "spec": {
            "upstreams": [{"host": "docker.io"}],
            "storage": {"type": "Ephemeral"},
            "tls": {"mode": "SelfSigned"},
        },
    });
    serde_json::from_value(object).unwrap()
}

/// A cluster's Secrets, and the Service's address.
struct World {
    held: References,
    address: &'static str,
}

impl World {
    fn new() -> Self {
        Self {
            held: References::default(),
            address: "10.96.0.7",
        }
    }

    /// Reconciles at that time, and returns the certificate that clients receive.
    fn at(&mut self, now: i64) -> Serving {
        let mirror = mirror();
        let observed = Observed {
            at: Timestamp::from_second(START + now).unwrap(),
            service_names: vec![self.address.to_owned()],
            ..Observed::default()
        };
        let mut accepted = validate::accept(&mirror, &self.held).unwrap();
        peer_secret::ensure(&mut accepted, &self.held);
        let names = certificates::subject_names(&mirror, &observed);
        certificates::ensure(
            &mut accepted,
            &self.held,
            &names,
            observed.at,
            &CertificateLifetimes::default(),
        )
        .unwrap();
        let contents = |data| {
            Some(Contents {
                data,
                ..Contents::default()
            })
        };
        self.held.files = contents(desired::files::all(&accepted));
        self.held.ca = contents(accepted.ca.unwrap());
        self.held.peers = contents(accepted.peers.unwrap());
        accepted.serving.unwrap()
    }

    fn kept(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.held.ca.as_ref().unwrap().data
    }
}

/// Returns true if a client that trusts these CAs accepts the certificate for each of these names.
fn accepts(bundle: &[u8], shown: &Serving, names: &[&str], now: i64) -> bool {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(bundle) {
        roots.add(authority.unwrap()).unwrap();
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&shown.certificate)
        .collect::<Result<_, _>>()
        .unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs((START + now).unsigned_abs()));
    names.iter().all(|name| {
        let name = ServerName::try_from(*name).unwrap();
        verifier
            .verify_server_cert(&chain[0], &chain[1..], &name, &[], now)
            .is_ok()
    })
}

fn bundle(shown: &Serving) -> Vec<u8> {
    shown.ca.clone().unwrap()
}

const NAMES: [&str; 8] = [
    "hub",
    "hub.mirrors",
    "hub.mirrors.svc",
    "hub.mirrors.svc.cluster.local",
    "hub-headless.mirrors.svc",
    "hub-headless.mirrors.svc.cluster.local",
    "hub-0.hub-headless.mirrors.svc.cluster.local",
    "10.96.0.7",
];

#[test]
fn certificate_names_services_and_address() {
    let mut world = World::new();
    let shown = world.at(0);
    assert!(accepts(&bundle(&shown), &shown, &NAMES, 0));
    assert!(!accepts(&bundle(&shown), &shown, &["other.mirrors.svc"], 0));
    assert!(!accepts(&bundle(&shown), &shown, &["10.96.0.8"], 0));
}

#[test_case(0; "at once")]
#[test_case(59 * DAY; "just before it is renewed")]
fn valid_certificates_are_kept(later: i64) {
    let mut world = World::new();
    let first = world.at(0);
    let kept = world.kept().clone();
    let second = world.at(later);
    assert!(first.certificate == second.certificate && first.key == second.key);
    assert!(bundle(&first) == bundle(&second) && kept == *world.kept());
}

#[test]
fn bundle_of_the_last_year_always_verifies() {
    let (mut world, mut now) = (World::new(), 0);
    let (mut published, mut bundles) = (Vec::new(), 0);
    while now < 3650 * DAY {
        let shown = world.at(now);
        if published.last().is_none_or(|(_, last)| *last != bundle(&shown)) {
            bundles += 1;
        }
        published.push((now, bundle(&shown)));
        for (since, bundle) in &published {
            if now - since <= 364 * DAY {
                let until = (shown.changes - START).min(since + 364 * DAY) - 1;
                for at in [now, until.max(now)] {
                    assert!(
                        accepts(bundle, &shown, &NAMES, at),
                        "after {} days",
                        (at - since) / DAY
                    );
                }
            }
        }
        let next = shown.changes - START;
        assert!(next > now, "a look that leads to nothing is taken again at once");
        now = next;
    }
    assert!(bundles >= 10, "{bundles} bundles in ten years");
}

/// Servers verify each other's certificate on both sides of TLS over years, also while one of them has the files of the
/// day before.
#[test]
fn peer_certificates_verify_on_both_sides() {
    let (mut world, mut now) = (World::new(), 0);
    let mut previous: Option<BTreeMap<String, Vec<u8>>> = None;
    let mut changed = 0;
    while now < 1500 * DAY {
        world.at(now);
        let files = world.held.peers.as_ref().unwrap().data.clone();
        for (one, other) in [(&files, &files)]
            .into_iter()
            .chain(previous.iter().flat_map(|p| [(p, &files), (&files, p)]))
        {
            assert_members(&one["ca.crt"], &other["tls.crt"], now);
        }
        changed += usize::from(
            previous
                .as_ref()
                .is_some_and(|previous| previous["tls.crt"] != files["tls.crt"]),
        );
        previous = Some(files);
        now += DAY;
    }
    assert!((20..40).contains(&changed), "{changed} certificates");
}

/// Fails unless a server with these CAs accepts a certificate of another one, as a client and as a server.
fn assert_members(authorities: &[u8], certificate: &[u8], now: i64) {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(authorities) {
        roots.add(authority.unwrap()).unwrap();
    }
    let (roots, provider) = (Arc::new(roots), Arc::new(aws_lc_rs::default_provider()));
    let certificate = CertificateDer::from_pem_slice(certificate).unwrap();
    let at = UnixTime::since_unix_epoch(Duration::from_secs((START + now).unsigned_abs()));
    let server = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    let name = ServerName::try_from("hub-headless.mirrors.svc").unwrap();
    let verified = server
        .build()
        .unwrap()
        .verify_server_cert(&certificate, &[], &name, &[], at);
    assert!(
        verified.is_ok(),
        "as a server after {} days: {verified:?}",
        now / DAY
    );
    let client = WebPkiClientVerifier::builder_with_provider(roots, provider)
        .build()
        .unwrap();
    let verified = client.verify_client_cert(&certificate, &[], at);
    assert!(
        verified.is_ok(),
        "as a client after {} days: {verified:?}",
        now / DAY
    );
}

#[test]
fn next_ca_is_published_a_year_before_it_signs() {
    let mut world = World::new();
    let first = world.at(0);
    let announced = world.at(365 * DAY);
    let authorities = |shown: &Serving| CertificateDer::pem_slice_iter(&bundle(shown)).count();
    assert_eq!((authorities(&first), authorities(&announced)), (1, 2));
    assert!(accepts(&bundle(&first), &announced, &NAMES, 365 * DAY));
    let signs = world.at(730 * DAY + 60 * DAY);
    assert_ne!(signs.certificate, announced.certificate);
    assert_eq!(CertificateDer::pem_slice_iter(&signs.certificate).count(), 1);
    assert_eq!(authorities(&signs), 3, "the previous, the current and the next");
    let now = 790 * DAY;
    assert!(accepts(&bundle(&announced), &signs, &NAMES, now));
    assert!(
        !accepts(&bundle(&first), &signs, &NAMES, now),
        "a copy of two years"
    );
    let after = world.at(1096 * DAY);
    assert_eq!(authorities(&after), 2, "the first has ended");
}

#[test]
fn new_address_gets_a_certificate_of_the_same_ca() {
    let mut world = World::new();
    let first = world.at(0);
    world.address = "fd00::7";
    let second = world.at(1);
    assert!(accepts(
        &bundle(&first),
        &second,
        &["hub.mirrors.svc", "fd00::7"],
        1
    ));
    assert!(!accepts(&bundle(&first), &second, &["10.96.0.7"], 1));
    assert!(bundle(&first) == bundle(&second));
}

#[test]
fn address_is_compared_in_canonical_form() {
    let mut world = World {
        address: "2001:DB8:0:0::0007",
        ..World::new()
    };
    let first = world.at(0);
    assert_eq!(world.at(60).certificate, first.certificate);
}

#[test]
fn lost_ca_is_replaced_while_its_certificate_serves() {
    let mut world = World::new();
    let first = world.at(0);
    world.held.ca = None;
    let second = world.at(DAY);
    assert!(first.certificate == second.certificate, "no client notices");
    let renewed = world.at(61 * DAY);
    assert!(
        accepts(&bundle(&second), &renewed, &NAMES, 61 * DAY),
        "clients had two months"
    );
}

#[test]
fn lost_certificate_is_issued_by_the_same_ca() {
    let mut world = World::new();
    let first = world.at(0);
    world.held.files = None;
    let second = world.at(DAY);
    assert!(first.certificate != second.certificate);
    assert!(accepts(&bundle(&first), &second, &NAMES, DAY));
}

#[test_case(&[("tls.key", "hello")]; "no key")]
#[test_case(&[("tls.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]; "no certificate")]
#[test_case(&[("tls.crt", ""), ("tls.key", ""), ("ca.crt", "")]; "nothing")]
fn unusable_ca_is_replaced(changes: &[(&str, &str)]) {
    let mut world = World::new();
    world.at(0);
    let data = &mut world.held.ca.as_mut().unwrap().data;
    for (key, value) in changes {
        data.insert((*key).to_owned(), value.as_bytes().to_vec());
    }
    world.held.files = None;
    let shown = world.at(DAY);
    assert!(accepts(&bundle(&shown), &shown, &NAMES, DAY));
    let again = world.at(DAY);
    assert!(again.certificate == shown.certificate, "once");
}

#[test]
fn foreign_certificate_is_neither_served_nor_published() {
    let mut world = World::new();
    let (certificate, key) = (
        include_bytes!("specs/serving.pem").to_vec(),
        include_bytes!("specs/serving-key.pem").to_vec(),
    );
    let authority = include_bytes!("specs/authority.pem").to_vec();
    world.held.files = Some(Contents {
        data: BTreeMap::from([
            ("serving.crt".to_owned(), certificate.clone()),
            ("serving.key".to_owned(), key),
            ("serving-ca.crt".to_owned(), authority),
        ]),
        ..Contents::default()
    });
    let shown = world.at(0);
    assert!(shown.certificate != certificate);
    assert_eq!(CertificateDer::pem_slice_iter(&bundle(&shown)).count(), 1);
}
