//! Notifies running Pods of files to reload: a changed annotation makes their kubelet sync mounted files at once, instead of
//! within a minute and a half.

use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, api::DynamicObject};

use super::{Applier, ApplyError};
use crate::{backoff::Backoff, desired::Desired, kind::Kind, names, observed::Observed};

/// The delays after which a Pod whose server has not reloaded is notified again.
pub const NOTIFY_AGAIN: Backoff = Backoff {
    first: Duration::from_secs(10),
    longest: Duration::from_mins(30),
};
/// The maximum number of notifications of one change, as a kubelet may never sync.
const MAX_NOTIFICATIONS: u32 = 8;

impl Applier<'_> {
    /// Annotates the running Pods. The workload gets the annotation afterwards, once all Pods have it.
    pub(super) async fn notify_pods(&self, desired: &Desired, observed: &Observed) -> Result<(), ApplyError> {
        let (workload, cache) = (&desired.workload, &self.cluster.cache);
        let Some(live) = cache.get(workload.kind, &self.namespace, &workload.name) else {
            return Ok(());
        };
        let is_marked = live.annotations().get(names::RELOAD) == Some(&desired.reload);
        let name = self.mirror.name_any();
        let pods = cache.of_mirror(Kind::Pod, &self.namespace, &name);
        let is_late = |pod: &DynamicObject| {
            let mut servers = observed.servers.iter();
            let uid = pod.metadata.uid.as_ref();
            servers.any(|server| Some(&server.uid) == uid && desired.needs_reload(server))
        };
        let notified = pods
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .filter_map(|pod| {
                let count = next_count(pod, &desired.reload, is_marked, is_late(pod), observed.at)?;
                Some((pod.name_any(), count))
            })
            .map(|(name, count)| self.notify_pod(name, &desired.reload, count, observed.at));
        try_join_all(notified).await?;
        Ok(())
    }

    async fn notify_pod(
        &self,
        name: String,
        reload: &str,
        count: u32,
        now: Timestamp,
    ) -> Result<(), ApplyError> {
        let notified = format!("{count} {now}");
        let names::Annotation { current, former } = names::RELOAD_NOTIFIED;
        let annotations = [
            (names::RELOAD, Some(reload)),
            (current, Some(notified.as_str())),
            (former, None),
        ];
        let done = self
            .cluster
            .annotate(Kind::Pod, &self.namespace, &name, &annotations)
            .await;
        done.map_err(|source| ApplyError::cluster("annotated", Kind::Pod, &name, source))
    }
}

/// Returns the number of notifications of a Pod once it is notified now; `None` if it needs none.
fn next_count(
    pod: &DynamicObject,
    reload: &str,
    is_marked: bool,
    is_late: bool,
    now: Timestamp,
) -> Option<u32> {
    let annotations = pod.annotations();
    if annotations.get(names::RELOAD).map(String::as_str) != Some(reload) {
        return (!is_marked || is_late).then_some(1);
    }
    let (count, at) = names::RELOAD_NOTIFIED.get(annotations)?.split_once(' ')?;
    let (count, at): (u32, Timestamp) = (count.parse().ok()?, at.parse().ok()?);
    let is_due = now.duration_since(at).unsigned_abs() >= NOTIFY_AGAIN.delay(count);
    (is_late && is_due && count < MAX_NOTIFICATIONS).then_some(count + 1)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn pod(annotations: &[(&str, &str)]) -> DynamicObject {
        let mut pod = DynamicObject::new("hub-0", &Kind::Pod.resource());
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        pod.metadata.annotations = Some(annotations.collect());
        pod
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test_case(false, false => Some(1); "a change")]
    #[test_case(true, false => None; "started since")]
    #[test_case(true, true => Some(1); "started since, with older files")]
    fn pod_without_notification(is_marked: bool, is_late: bool) -> Option<u32> {
        next_count(
            &pod(&[(names::RELOAD, "old")]),
            "new",
            is_marked,
            is_late,
            at(100),
        )
    }

    #[test_case("1 1970-01-01T00:01:30Z", true => Some(2); "ten seconds later")]
    #[test_case("1 1970-01-01T00:01:31Z", true => None; "nine seconds later")]
    #[test_case("2 1970-01-01T00:01:30Z", true => None; "later each time")]
    #[test_case("2 1970-01-01T00:01:20Z", true => Some(3); "twenty seconds later")]
    #[test_case("8 1970-01-01T00:00:00Z", true => None; "not for ever")]
    #[test_case("1 1970-01-01T00:01:30Z", false => None; "loaded")]
    #[test_case("nonsense", true => None; "another format")]
    fn notified_pod(notified: &str, is_late: bool) -> Option<u32> {
        next_count(
            &pod(&[(names::RELOAD, "new"), (names::RELOAD_NOTIFIED.former, notified)]),
            "new",
            true,
            is_late,
            at(100),
        )
    }
}
