//! Names that lead elsewhere than they did: a network of its own, with a name server that changes its mind.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use mirror::clock::Clock;
use mirror::upstream::{Error, Upstream};
use parking_lot::Mutex;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};

use crate::bytes;
use crate::hub::{Fault, Hub};
use crate::server::Server;

/// Set for the part of the test that runs within that network.
pub(crate) const WITHIN: &str = "REGISTRY_MIRROR_TEST_WITHIN";
/// Addresses for documentation (RFC 5737), which stand for public ones here.
const REGISTRY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const STORAGE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 8);
/// Addresses of a private network, and the one of clouds' metadata services.
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 7);
const DEEP_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 8);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Sets the network up, and has the name server asked for every name.
const SETUP: &str = "set -e; ip link set lo up
    for a in 203.0.113.7 203.0.113.8 10.9.0.7 10.9.0.8 169.254.169.254; do ip addr add $a/32 dev lo; done
    echo 'nameserver 127.0.0.1' > \"$0/resolv.conf\"; echo 'hosts: dns' > \"$0/nsswitch.conf\"
    for f in resolv.conf nsswitch.conf; do
        [ ! -e /etc/$f ] || mount --bind \"$0/$f\" \"$(readlink -f /etc/$f)\"
    done
    exec \"$@\"";

/// Returns the options for `unshare` to make a network namespace with mounts of its own here, or `None` with a message.
fn namespaces() -> Option<&'static str> {
    let possible = |how: &&str| {
        let tried = Command::new("/usr/bin/unshare")
            .args([how, "/bin/sh", "-c", "ip link set lo up"])
            .output();
        tried.is_ok_and(|output| output.status.success())
    };
    let how = ["-mn", "-rmn"].into_iter().find(possible);
    if how.is_none() {
        let why = "this machine allows no network of one's own (unshare -n), or has no ip";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
        eprintln!("skipped: {why}");
    }
    how
}

/// A name that rebinds to a private address is not requested.
#[test]
fn rebound_name_reaches_no_private_address() {
    run_within("rebind::rebound_names_in_own_network");
}

/// The owner of a registry's name chooses its addresses, so that a private one among them opens no private network.
#[test]
fn own_private_address_opens_nothing_without_tls() {
    run_within("rebind::own_name_within_a_network_of_its_own");
}

/// Runs another test of this program in a network of its own.
pub(crate) fn run_within(test: &str) {
    let Some(how) = namespaces() else { return };
    let home = tempfile::tempdir().unwrap();
    let within = Command::new("/usr/bin/unshare")
        .args([how, "/bin/sh", "-c", SETUP])
        .arg(home.path())
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored"])
        .env(WITHIN, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&within.stdout);
    assert!(
        within.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&within.stderr)
    );
}

/// The part of `rebound_name_reaches_no_private_address` that runs in a network namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test above, within namespaces"]
async fn rebound_names_in_own_network() {
    if std::env::var_os(WITHIN).is_none() {
        return;
    }
    let hub = Hub::start().await;
    let names = Names::serve().await;
    names.set("registry.test", &[REGISTRY.into()]);
    let port = |url: url::Url| url.port().unwrap();
    let (registry, storage) = (port(hub.url()), port(hub.storage_url()));
    let _registry = Passage::open(REGISTRY, registry).await;
    hub.redirect_blobs_to(&format!("http://storage.test:{storage}/"));
    let home = tempfile::tempdir().unwrap();
    let remote = format!("http://registry.test:{registry}");
    let environment = [("REGISTRY_PROXY_REMOTEURL", remote.as_str())];
    let server = Server::start_in(&home.path().join("cache"), &hub, "", &environment).await;
    let mut seed = 0;
    // Pulls an uncached blob while the storage's name resolves to these addresses.
    let mut pull = async |addresses: &[IpAddr]| {
        // A connection that is still open has no name to look up.
        let _storage = Passage::open(STORAGE, storage).await;
        names.set("storage.test", addresses);
        seed += 1;
        let digest = hub.push_blob("library/app", bytes(seed, 1000));
        let asked = hub.count("* /");
        let head = server
            .get(&format!("/v2/library/app/blobs/{digest}"), "")
            .await
            .unwrap();
        let from_storage = hub
            .seen("* /")
            .iter()
            .skip(asked)
            .filter(|seen| seen.storage)
            .count();
        match head.status {
            200 => assert_eq!(head.digest().await.unwrap(), digest),
            503 => {
                assert_eq!(from_storage, 0, "{addresses:?} was asked");
                let reported = head.body().await.unwrap();
                assert!(reported.contains("trust.redirects"), "{reported}");
            }
            status => panic!("{addresses:?}: {status}"),
        }
        from_storage > 0
    };
    let (good, here) = (IpAddr::from(STORAGE), IpAddr::from(Ipv4Addr::LOCALHOST));
    assert!(pull(&[good]).await);
    for bad in ["127.0.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1", "127.9.9.9"] {
        assert!(!pull(&[bad.parse().unwrap()]).await, "{bad}");
    }
    // Of several addresses those that may be asked are.
    assert!(pull(&[here, good]).await);
    assert!(pull(&[good]).await);
}

/// A registry and the names that it has in that network.
struct Registry {
    hub: Hub,
    names: Names,
}

impl Registry {
    /// Pulls with a new client, after the registry got this redirect to give, if there is one.
    async fn pull(&self, remote: &str, trusted: &[&str], redirect: Option<String>) -> Result<(), Error> {
        let mut config = self.hub.config();
        config.remote = remote.parse().unwrap();
        config.trust.redirects = trusted.iter().map(ToString::to_string).collect();
        let upstream = Upstream::new(&config, Clock::system()).unwrap();
        let (app, tag) = ("library/app".parse().unwrap(), "v1".parse().unwrap());
        // The first answer proves the address, where TLS does.
        upstream.manifest(&app, &tag).await?;
        let Some(to) = redirect else { return Ok(()) };
        self.hub.once("GET manifests", Fault::redirect(&to));
        let pulled = upstream.manifest(&app, &tag).await.map(drop);
        self.hub.heal();
        pulled
    }
}

fn assert_refused(pulled: Result<(), Error>) {
    let error = pulled.unwrap_err().to_string();
    assert!(error.contains("private network"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test above, within namespaces"]
async fn own_name_within_a_network_of_its_own() {
    if std::env::var_os(WITHIN).is_none() {
        return;
    }
    let names = Names::serve().await;
    for hub in [Hub::start().await, Hub::start_tls().await] {
        let is_tls = hub.ca_file().is_some();
        hub.push_image("library/app", "v1", &[b"layer"]);
        let (scheme, port) = (hub.url().scheme().to_owned(), hub.url().port().unwrap());
        let remote = format!("{scheme}://registry.test:{port}");
        let mut open = Vec::new();
        for address in [REGISTRY, DEEP_INSIDE, METADATA] {
            open.push(Passage::open(address, port).await);
        }
        let registry = Registry {
            hub,
            names: Names(names.0.clone()),
        };
        let to = |host: &str| Some(format!("{scheme}://{host}:{port}/v2/library/app/manifests/v1"));
        registry.names.set("inside.test", &[DEEP_INSIDE.into()]);
        // A public registry, whose name has a private address, too.
        registry
            .names
            .set("registry.test", &[REGISTRY.into(), INSIDE.into()]);
        for host in ["inside.test", "10.9.0.8"] {
            assert_refused(registry.pull(&remote, &[], to(host)).await);
        }
        registry
            .pull(&remote, &["inside.test"], to("inside.test"))
            .await
            .unwrap();
        // A private registry: TLS proves it, and clear text does not.
        open.push(Passage::open(INSIDE, port).await);
        registry.names.set("registry.test", &[INSIDE.into()]);
        registry.pull(&remote, &[], to("registry.test")).await.unwrap();
        let pulled = registry.pull(&remote, &[], to("inside.test")).await;
        if is_tls {
            pulled.unwrap();
        } else {
            assert_refused(pulled);
        }
        // Its own name at another port, where nothing proves it.
        if !is_tls {
            let other = registry.hub.storage_url().port().unwrap();
            let to = Some(format!("http://registry.test:{other}/x"));
            assert_refused(registry.pull(&remote, &[], to).await);
        }
        // The metadata service has no name that is a registry's.
        registry.names.set("registry.test", &[METADATA.into()]);
        assert_refused(registry.pull(&remote, &[], None).await);
        registry.pull(&remote, &["169.254.169.254"], None).await.unwrap();
    }
}

/// A public address behind which there is what listens on a port of this machine.
struct Passage(AbortHandle);

impl Passage {
    async fn open(address: Ipv4Addr, port: u16) -> Self {
        let listener = loop {
            // The port is free once the one before was dropped.
            match TcpListener::bind((address, port)).await {
                Ok(listener) => break listener,
                Err(error) if error.kind() == ErrorKind::AddrInUse => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                open.spawn(async move {
                    let mut to = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
                    let _ = copy_bidirectional(&mut from, &mut to).await;
                });
            }
        });
        Self(task.abort_handle())
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A name server (RFC 1035) with the addresses that were set last.
pub(crate) struct Names(Arc<Mutex<Known>>);

/// A failure of a name server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DnsFault {
    /// The answer to each query is SERVFAIL.
    ServFail,
    /// No query has an answer.
    Silent,
}

/// The names that a server knows.
#[derive(Default)]
struct Known {
    /// Names with their addresses.
    names: Vec<(String, Vec<IpAddr>)>,
    fault: Option<DnsFault>,
    queries: usize,
}

impl Names {
    pub(crate) async fn serve() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).await.unwrap();
        let names = Self(Arc::default());
        let known = Arc::clone(&names.0);
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut query).await {
                let answer = {
                    let mut known = known.lock();
                    known.queries += 1;
                    let fault = known.fault;
                    (fault != Some(DnsFault::Silent)).then(|| answer(&query[..length], &known))
                };
                if let Some(answer) = answer {
                    reply(&socket, &answer, client).await;
                }
            }
        });
        names
    }

    pub(crate) fn set(&self, name: &str, addresses: &[IpAddr]) {
        let known = &mut self.0.lock().names;
        known.retain(|(other, _)| other != name);
        known.push((name.to_owned(), addresses.to_vec()));
    }

    /// Fails all queries, or none.
    pub(crate) fn fail(&self, fault: Option<DnsFault>) {
        self.0.lock().fault = fault;
    }

    /// Returns the number of queries.
    pub(crate) fn queries(&self) -> usize {
        self.0.lock().queries
    }
}

async fn reply(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    let _ = socket.send_to(answer, client).await;
}

/// The answer to a query with one question, for addresses of the family that it asks for.
fn answer(query: &[u8], known: &Known) -> Vec<u8> {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
        at = end;
    }
    let (question, version_6) = (&query[12..at + 5], query[at + 2] == 28);
    let is_failing = known.fault.is_some();
    let known = known.names.iter().filter(|_| !is_failing);
    let found = known.clone().find(|(name, _)| *name == labels.join("."));
    let records: Vec<Vec<u8>> = found
        .iter()
        .flat_map(|(_, addresses)| addresses)
        .filter(|address| address.is_ipv6() == version_6)
        .map(|address| match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        })
        .collect();
    let count = u8::try_from(records.len()).unwrap();
    // A response, without recursion; "no such name" for an unknown one; one question.
    let mut answer = query[..2].to_vec();
    answer.extend([
        0x84,
        match found {
            _ if is_failing => 2,
            Some(_) => 0,
            None => 3,
        },
        0,
        1,
        0,
        count,
        0,
        0,
        0,
        0,
    ]);
    answer.extend(question);
    for record in records {
        // The name of the question, its type and class, for no time at all.
        answer.extend([0xc0, 12, 0, question[question.len() - 3], 0, 1, 0, 0, 0, 0, 0]);
        answer.push(u8::try_from(record.len()).unwrap());
        answer.extend(record);
    }
    answer
}
