//! Replicas that know each other by certificates: mutual TLS on the peer port, in addition to the secret.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mirror::digest::Digest;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::fleet::{Replicas, SECRET, authorization, metric, now, status, until_peers};
use crate::hub::Hub;
use crate::server::Server;
use crate::{LIMIT, MIB, bytes, until};

/// The name in the certificates of replicas; no address has it.
const NAME: &str = "mirror-headless.mirrors.svc";

/// A CA.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// Issues a certificate for servers and clients; returns it with its key.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// The directory of the files of a replica.
struct Files(PathBuf);

impl Files {
    fn new(home: &Path, index: usize) -> Self {
        let directory = home.join(format!("tls{index}"));
        std::fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    /// Writes a certificate with its key, and the CAs of other replicas.
    fn write(&self, (certificate, key): &(String, String), authorities: &[&Ca]) {
        let bundle: String = authorities.iter().map(|ca| ca.pem.as_str()).collect();
        for (file, text) in [("tls.crt", certificate), ("tls.key", key), ("ca.crt", &bundle)] {
            let next = self.0.join("next");
            std::fs::write(&next, text).unwrap();
            std::fs::rename(next, self.0.join(file)).unwrap();
        }
    }

    fn environment(&self) -> Vec<(String, String)> {
        let file = |key: &str, file: &str| {
            let path = self.0.join(file).display().to_string();
            (format!("REGISTRY_PEERS_TLS_{key}"), path)
        };
        vec![
            file("CERTIFICATE", "tls.crt"),
            file("KEY", "tls.key"),
            file("CLIENTCAS_0", "ca.crt"),
        ]
    }
}

/// Replicas with files for certificates; none runs.
struct Mutual {
    replicas: Replicas,
    files: Vec<Files>,
    _home: tempfile::TempDir,
}

impl Mutual {
    /// Gives each replica a certificate of a CA.
    fn planned(count: usize, ca: &Ca) -> Self {
        let home = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..count).map(|index| Files::new(home.path(), index)).collect();
        let mut replicas = Replicas::planned(count, "", &[]);
        for (index, files) in files.iter().enumerate() {
            files.write(&ca.issue(NAME), &[ca]);
            replicas.environment[index] = files.environment();
        }
        Self {
            replicas,
            files,
            _home: home,
        }
    }

    async fn start(count: usize, ca: &Ca, hub: &Hub) -> Self {
        let mut mutual = Self::planned(count, ca);
        for index in 0..count {
            mutual.replicas.add(index, hub).await;
        }
        mutual.replicas.until_complete().await;
        mutual
    }
}

fn blob(digest: &Digest) -> String {
    format!("/v2/library/app/blobs/{digest}")
}

async fn pull(server: &Server, digest: &Digest) {
    let head = server.get(&blob(digest), "").await.unwrap();
    assert_eq!(head.status, 200, "{}", head.text);
    assert_eq!(head.digest().await.unwrap(), *digest);
}

/// Returns what a peer port answers to a request inside TLS; `None` where it ends the connection before an answer.
async fn asked(port: &str, trusted: &Ca, own: Option<&(String, String)>, request: &str) -> Option<String> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(trusted.pem.as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let builder = ClientConfig::builder_with_provider(mirror::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            let chain = chain.map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let stream = TcpStream::connect(port).await.unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let mut stream = connected.ok()?;
    // The server may have closed the connection already.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    let _ = ended.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (!answer.is_empty()).then_some(answer)
}

fn hello(secret: &str) -> String {
    let target = "/peer/v1/hello";
    let authorization = authorization(secret, "GET", target, now());
    format!("GET {target} HTTP/1.1\r\nhost: m\r\nconnection: close\r\nauthorization: {authorization}\r\n\r\n")
}

/// Replicas with mutual TLS, dialed by address, share one download.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutual_tls_replicas_share_one_download() {
    let (hub, digest) = Hub::with_blob(bytes(11, 8 * MIB)).await;
    let mutual = Mutual::start(3, &Ca::new(), &hub).await;
    let servers = [0, 1, 2].map(|index| mutual.replicas.get(index));
    let pulls = servers
        .iter()
        .flat_map(|server| (0..8).map(|_| pull(server, &digest)));
    futures::future::join_all(pulls).await;
    assert_eq!((hub.count("GET blobs"), hub.count("HEAD blobs")), (1, 0));
    let mut from_peers = 0.0;
    for server in servers {
        from_peers += metric(server, "registry_mirror_served_bytes_total{source=\"peer\"}").await;
    }
    assert!(from_peers > 0.0, "no bytes came from peers");
}

/// The peer port answers no byte of HTTP to a client without a certificate of its CA, and 401 to one without the secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_port_needs_certificate_and_secret() {
    let (hub, ca, other) = (Hub::start().await, Ca::new(), Ca::new());
    let mutual = Mutual::start(1, &ca, &hub).await;
    let port = &mutual.replicas.peer_ports[0];
    let (own, foreign) = (ca.issue(NAME), other.issue(NAME));
    let answer = asked(port, &ca, Some(&own), &hello(SECRET)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = asked(port, &ca, Some(&own), &hello("another-secret-of-them")).await;
    assert!(answer.unwrap().starts_with("HTTP/1.1 401"));
    assert_eq!(asked(port, &ca, None, &hello(SECRET)).await, None);
    assert_eq!(asked(port, &ca, Some(&foreign), &hello(SECRET)).await, None);
    let mut plain = TcpStream::connect(port).await.unwrap();
    plain.write_all(hello(SECRET).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(LIMIT, plain.read_to_end(&mut answer)).await;
    // The end of the connection, with or without a reset.
    let _ = ended.unwrap();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

/// A replica whose certificate has another name, or another CA, is not asked, and fails no pull.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_with_other_certificate_is_refused() {
    let (hub, ca, other) = (Hub::start().await, Ca::new(), Ca::new());
    let mut mutual = Mutual::planned(2, &ca);
    mutual.files[1].write(&ca.issue("other-headless.mirrors.svc"), &[&ca]);
    mutual.replicas.add(0, &hub).await;
    mutual.replicas.add(1, &hub).await;
    let first = mutual.replicas.get(0);
    until_peers(first, "refused", 1).await;
    let peers = status(first).await["peers"].clone();
    assert_eq!(peers[0]["cause"], "tls", "{peers}");
    mutual.files[1].write(&other.issue(NAME), &[&ca]);
    for seed in 0..4 {
        let digest = hub.push_blob("library/app", bytes(seed, 64 * 1024));
        pull(first, &digest).await;
    }
    until_peers(first, "refused", 1).await;
    mutual.files[1].write(&ca.issue(NAME), &[&ca]);
    mutual.replicas.until_complete().await;
}

/// While replicas get TLS one by one, or lose it, each acts alone for a while and no pull fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roll_to_tls_and_back_fails_no_pull() {
    let (hub, ca) = (Hub::start().await, Ca::new());
    let mut mutual = Mutual::planned(2, &ca);
    let with_tls = std::mem::replace(&mut mutual.replicas.environment, vec![Vec::new(); 2]);
    let replicas = &mut mutual.replicas;
    for index in 0..2 {
        replicas.add(index, &hub).await;
    }
    replicas.until_complete().await;
    let mut seed = 20;
    for environment in [with_tls, vec![Vec::new(); 2]] {
        for (index, environment) in environment.into_iter().enumerate() {
            replicas.environment[index] = environment;
            let old = replicas.servers[index].take().unwrap();
            assert_eq!(old.end().await.code(), Some(0));
            replicas.add(index, &hub).await;
            for _ in 0..4 {
                seed += 1;
                let digest = hub.push_blob("library/app", bytes(seed, 64 * 1024));
                pull(replicas.get(0), &digest).await;
                pull(replicas.get(1), &digest).await;
            }
        }
        replicas.until_complete().await;
    }
}

/// Certificates and CAs are replaced, as the operator does, under load: no pull fails, and members stay members.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_under_load() {
    let (hub, old, new) = (Hub::start().await, Ca::new(), Ca::new());
    let mutual = Mutual::start(2, &old, &hub).await;
    let (stop, pulled) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = async {
        while !stop.load(Ordering::SeqCst) {
            let seed = 100 + pulled.fetch_add(1, Ordering::SeqCst);
            let digest = hub.push_blob("library/app", bytes(seed as u64, 64 * 1024));
            pull(mutual.replicas.get(0), &digest).await;
            pull(mutual.replicas.get(1), &digest).await;
        }
    };
    let rotate = async {
        let steps: [(&Ca, &[&Ca]); 3] = [(&old, &[&old, &new]), (&new, &[&new, &old]), (&new, &[&new])];
        for (signer, trusted) in steps {
            for files in &mutual.files {
                files.write(&signer.issue(NAME), trusted);
            }
            let is_shown = async |port: &String| {
                let own = signer.issue(NAME);
                asked(port, signer, Some(&own), &hello(SECRET)).await.is_some()
                    && (trusted.len() > 1
                        || asked(port, signer, Some(&old.issue(NAME)), &hello(SECRET))
                            .await
                            .is_none())
            };
            for port in &mutual.replicas.peer_ports {
                let start = Instant::now();
                while !is_shown(port).await {
                    assert!(start.elapsed() < LIMIT, "the files were not read again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            mutual.replicas.until_complete().await;
            let before = pulled.load(Ordering::SeqCst);
            until("pulls with the new files", || {
                pulled.load(Ordering::SeqCst) > before + 2
            })
            .await;
        }
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(load, rotate);
    mutual.replicas.until_complete().await;
    let digest = hub.push_blob("library/app", bytes(99, 64 * 1024));
    let before = hub.count("GET blobs");
    pull(mutual.replicas.get(0), &digest).await;
    pull(mutual.replicas.get(1), &digest).await;
    assert_eq!(hub.count("GET blobs"), before + 1);
}
