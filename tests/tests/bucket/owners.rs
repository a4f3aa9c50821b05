//! The ledger of several replicas: uses and uploads reach the owners, and ownership moves.

use std::time::Duration;

use testbed::wait;

use crate::ledger::{KEEP, count, limited, pull, push, stored_bytes};
use crate::place::{Mirror, Place};

/// An ownership counts after 10 s, and owners ask for uses every 30 s.
const LIMIT: Duration = Duration::from_mins(3);
const MIB: usize = 1 << 20;

/// Returns the sum of a number in the status of some replicas; `None` while one does not know it.
async fn sum(mirrors: &[&Mirror], key: &str) -> Option<u64> {
    let mut sum = 0;
    for mirror in mirrors {
        sum += mirror.status().await[key].as_u64()?;
    }
    Some(sum)
}

async fn until_sum(mirrors: &[&Mirror], objects: usize) {
    let reached = || async {
        let found = (
            sum(mirrors, "objects").await?,
            sum(mirrors, "pendingUploads").await?,
        );
        (found == (objects as u64, 0)).then_some(())
    };
    wait::until("ledgers with all content", LIMIT, reached)
        .await
        .expect("ledgers");
}

/// Each piece of content has one owner; when a replica leaves, the other one owns its content, and evicts it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ownership_moves_when_a_replica_leaves() {
    let place = Place::new(&[10]).await;
    let [one, other] = place.replicas(&limited(&place, 100 * MIB), KEEP).await;
    let mut images = Vec::new();
    for (name, mirror) in [("a", &one), ("b", &other), ("c", &one), ("d", &other)] {
        let image = push(&place, name).await;
        pull(&place, mirror, name, &image).await;
        images.push(image);
    }
    let all = count([&images[0], &images[1], &images[2], &images[3]]);
    until_sum(&[&one, &other], all).await;
    let bytes = sum(&[&one, &other], "bytes").await;
    assert_eq!(bytes, Some(stored_bytes(&place)));
    other.stop().await;
    until_sum(&[&one], all).await;
    assert_eq!(sum(&[&one], "bytes").await, bytes);
}

/// A use at any replica reaches the owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uses_of_all_replicas_reach_owners() {
    let place = Place::new(&[10]).await;
    let [one, other] = place.replicas(&limited(&place, 100 * MIB), KEEP).await;
    let image = push(&place, "used").await;
    pull(&place, &one, "used", &image).await;
    until_sum(&[&one, &other], count([&image])).await;
    let before = jiff::Timestamp::now();
    pull(&place, &other, "used", &image).await;
    let reached = || async {
        for mirror in [&one, &other] {
            let oldest = mirror.status().await["oldestUse"].as_str().map(str::to_owned);
            let oldest: Option<jiff::Timestamp> = oldest.and_then(|time| time.parse().ok());
            if oldest.is_some_and(|oldest| oldest < before) {
                return None;
            }
        }
        Some(())
    };
    wait::until("uses at the owners", LIMIT, reached)
        .await
        .expect("uses");
}

/// The replicas together keep the content of the bucket within the limit, whichever of them uploaded it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_keep_the_limit_together() {
    let place = Place::new(&[10]).await;
    let limit = 4 * MIB;
    let [one, other] = place.replicas(&limited(&place, limit), KEEP).await;
    let mut images = Vec::new();
    for (number, name) in ["a", "b", "c", "d", "e", "f", "g", "h"].into_iter().enumerate() {
        let image = push(&place, name).await;
        pull(&place, [&one, &other][number % 2], name, &image).await;
        images.push((name, image));
    }
    let within = || async {
        let counted = sum(&[&one, &other], "bytes").await?;
        let pending = sum(&[&one, &other], "pendingUploads").await?;
        let found = stored_bytes(&place);
        (pending == 0 && counted == found && found <= limit as u64).then_some(())
    };
    wait::until("bucket within its limit", LIMIT, within)
        .await
        .expect("a limit");
    let reader = place.mirror("reader").await;
    for (name, image) in &images {
        pull(&place, &reader, name, image).await;
    }
    place.check_objects();
}
