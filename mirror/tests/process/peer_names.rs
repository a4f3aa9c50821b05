//! Replicas that find each other by a name, in a network of its own with a name server that fails.

use std::net::Ipv4Addr;

use crate::fleet::{Replicas, until_peers};
use crate::hub::Hub;
use crate::rebind::{DnsFault, Names, WITHIN, run_within};
use crate::{bytes, until};

const NAME: &str = "replicas.test";

/// While the name of the replicas has no address, or its server fails, the replicas that are known stay members.
#[test]
fn unresolved_name_keeps_known_members() {
    run_within("peer_names::peer_names_in_own_network");
}

/// The part of `unresolved_name_keeps_known_members` that runs in a network namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test above, within namespaces"]
async fn peer_names_in_own_network() {
    if std::env::var_os(WITHIN).is_none() {
        return;
    }
    let (hub, names) = (Hub::start().await, Names::serve().await);
    let addresses = [2, 3].map(|last| Ipv4Addr::new(127, 0, 0, last).into());
    names.set(NAME, &addresses);
    let mut replicas = Replicas::planned(2, "", &[]);
    for (index, address) in addresses.iter().enumerate() {
        replicas.peer_ports[index] = format!("{address}:5002");
        replicas.views[index] = vec![format!("{NAME}:5002")];
        replicas.add(index, &hub).await;
    }
    replicas.until_complete().await;
    let mut seed = 60;
    for fault in [None, Some(DnsFault::ServFail), Some(DnsFault::Silent)] {
        names.set(NAME, &[]);
        names.fail(fault);
        let before = names.queries();
        until("queries of both replicas", || names.queries() >= before + 12).await;
        for index in 0..2 {
            until_peers(replicas.get(index), "serving", 1).await;
        }
        seed += 1;
        let digest = hub.push_blob("library/app", bytes(seed, 64 * 1024));
        for index in 0..2 {
            let path = format!("/v2/library/app/blobs/{digest}");
            let head = replicas.get(index).get(&path, "").await.unwrap();
            assert_eq!((head.status, head.digest().await.unwrap()), (200, digest.clone()));
        }
        assert_eq!(
            hub.count("GET blobs"),
            usize::try_from(seed).unwrap() - 60,
            "{fault:?}"
        );
        names.fail(None);
        names.set(NAME, &addresses);
        let before = names.queries();
        until("queries of both replicas", || names.queries() >= before + 4).await;
        replicas.until_complete().await;
    }
}
