//! Running Pods are told of what they can reload: an annotation makes their kubelet look at what they mount at once,
//! instead of within the next minute and a half.

use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, api::DynamicObject};

use super::{Error, Target};
use crate::{
    desired::{Desired, names},
    kind::Kind,
    observed::Observed,
};

/// When a Pod is told again of what its server has not read; twice as late each time.
pub const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// So often at most: a kubelet that never looks must not be told for ever.
const TIMES: u32 = 8;

impl Target<'_> {
    /// Annotates the running Pods. The workload is marked, by being applied next, only once all were told.
    pub(super) async fn tell_pods(&self, desired: &Desired, observed: &Observed) -> Result<(), Error> {
        let Some(live) =
            self.cluster
                .children
                .get(desired.workload.kind, &self.namespace, &desired.workload.name)
        else {
            return Ok(());
        };
        let marked = live.annotations().get(names::RELOAD) == Some(&desired.reload);
        let name = self.mirror.name_any();
        let pods = self.cluster.children.of_mirror(Kind::Pod, &self.namespace, &name);
        let late = |pod: &DynamicObject| {
            let mut servers = observed.servers.iter();
            servers.any(|server| Some(&server.uid) == pod.metadata.uid.as_ref() && desired.is_news_to(server))
        };
        let told = pods
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .filter_map(|pod| {
                let times = times(pod, &desired.reload, marked, late(pod), observed.at)?;
                Some((pod.name_any(), times))
            })
            .map(|(name, times)| self.tell_pod(name, &desired.reload, times, observed.at));
        try_join_all(told).await?;
        Ok(())
    }

    async fn tell_pod(&self, name: String, reload: &str, times: u32, now: Timestamp) -> Result<(), Error> {
        let told = format!("{times} {now}");
        let names::Renamed { current, former } = names::RELOAD_NOTIFIED;
        let annotations = [
            (names::RELOAD, Some(reload)),
            (current, Some(told.as_str())),
            (former, None),
        ];
        let told = self
            .cluster
            .annotate(Kind::Pod, &self.namespace, &name, &annotations)
            .await;
        told.map_err(|source| Error::cluster("annotating", Kind::Pod, &name, source))
    }
}

/// How often a Pod has been told once it is told now; `None`: it needs no telling.
fn times(pod: &DynamicObject, reload: &str, marked: bool, late: bool, now: Timestamp) -> Option<u32> {
    let annotations = pod.annotations();
    if annotations.get(names::RELOAD).map(String::as_str) != Some(reload) {
        return (!marked || late).then_some(1);
    }
    let (times, at) = names::RELOAD_NOTIFIED.get(annotations)?.split_once(' ')?;
    let (times, at): (u32, Timestamp) = (times.parse().ok()?, at.parse().ok()?);
    let wait = AGAIN_AFTER * 2_u32.checked_pow(times.checked_sub(1)?)?;
    let over = now.duration_since(at).unsigned_abs() >= wait;
    (late && over && times < TIMES).then_some(times + 1)
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
    #[test_case(true, true => Some(1); "started since, from files of before")]
    fn a_pod_that_was_not_told(marked: bool, late: bool) -> Option<u32> {
        times(&pod(&[(names::RELOAD, "old")]), "new", marked, late, at(100))
    }

    #[test_case("1 1970-01-01T00:01:30Z", true => Some(2); "ten seconds later")]
    #[test_case("1 1970-01-01T00:01:31Z", true => None; "nine seconds later")]
    #[test_case("2 1970-01-01T00:01:30Z", true => None; "later each time")]
    #[test_case("2 1970-01-01T00:01:20Z", true => Some(3); "twenty seconds later")]
    #[test_case("8 1970-01-01T00:00:00Z", true => None; "not for ever")]
    #[test_case("1 1970-01-01T00:01:30Z", false => None; "loaded")]
    #[test_case("nonsense", true => None; "someone else's words")]
    fn a_pod_that_was_told(told: &str, late: bool) -> Option<u32> {
        times(
            &pod(&[(names::RELOAD, "new"), (names::RELOAD_NOTIFIED.former, told)]),
            "new",
            true,
            late,
            at(100),
        )
    }
}
