//! The decision when a summary goes to the status: once the nodes agree, and not too often.

use std::time::Duration;

use tokio::time::Instant;

use crate::observed::NodeSummary;

/// The time after which a summary that keeps changing is published.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// The number of publications without a delay.
const BURST: u32 = 4;
/// The interval between publications after the burst.
const INTERVAL: Duration = Duration::from_secs(30);

/// The published summary of a mirror, and the next one.
#[derive(Default)]
pub(super) struct Publication {
    current: Option<NodeSummary>,
    /// The next summary, and the time since which the current one differs from the nodes.
    next: Option<(NodeSummary, Instant)>,
    /// The theoretical arrival time of the next publication (GCRA).
    arrival: Option<Instant>,
}

impl Publication {
    /// Returns the published summary.
    pub(super) fn current(&self) -> Option<&NodeSummary> {
        self.current.as_ref()
    }

    /// Returns whether a change waits for the next sweep; one that lasts for longer does not.
    pub(super) fn is_pending(&self, now: Instant) -> bool {
        let since = self.next.as_ref().map(|(_, since)| *since);
        since.is_some_and(|since| now.duration_since(since) < MAX_DELAY)
    }

    /// Adds the summary of a sweep, and returns whether it is published. `is_complete`: each agent answered or failed.
    pub(super) fn update(&mut self, summary: NodeSummary, is_complete: bool, now: Instant) -> bool {
        if self.current.as_ref() == Some(&summary) {
            self.next = None;
            return false;
        }
        let (previous, since) = self
            .next
            .take()
            .map_or((None, now), |(next, since)| (Some(next), since));
        let is_settled = is_complete && previous.as_ref() == Some(&summary);
        if (is_settled || now.duration_since(since) >= MAX_DELAY) && self.admit(now) {
            self.current = Some(summary);
            return true;
        }
        self.next = Some((summary, since));
        false
    }

    fn admit(&mut self, now: Instant) -> bool {
        let arrival = self.arrival.map_or(now, |arrival| arrival.max(now)) + INTERVAL;
        let is_admitted = arrival.duration_since(now) <= INTERVAL * BURST;
        if is_admitted {
            self.arrival = Some(arrival);
        }
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(configured: usize) -> NodeSummary {
        NodeSummary {
            configured,
            ..NodeSummary::default()
        }
    }

    /// A change that reaches the nodes during several sweeps is published once.
    #[test]
    fn change_is_published_once_it_settled() {
        let (mut publication, now) = (Publication::default(), Instant::now());
        let sweeps = [1000, 1000, 430, 970, 0, 0, 0, 0];
        let published = sweeps.map(|configured| publication.update(summary(configured), true, now));
        assert_eq!(published, [false, true, false, false, false, true, false, false]);
    }

    #[test]
    fn first_summary_waits_for_all_agents() {
        let (mut publication, now) = (Publication::default(), Instant::now());
        assert!(!publication.update(summary(3), false, now));
        assert!(!publication.update(summary(3), false, now));
        assert!(publication.is_pending(now));
        assert!(publication.update(summary(3), true, now));
        assert!(!publication.is_pending(now));
    }

    #[test]
    fn summary_that_never_settles_is_published_late() {
        let (mut publication, start) = (Publication::default(), Instant::now());
        let sweeps = (1..=20).map(|sweep| {
            let now = start + Duration::from_secs(sweep * 2);
            publication.update(summary(usize::try_from(sweep).unwrap()), true, now)
        });
        assert_eq!(sweeps.filter(|published| *published).count(), 1);
    }

    #[test]
    fn publications_are_rate_limited() {
        let (mut publication, start) = (Publication::default(), Instant::now());
        let changes = (0..600_u64).map(|sweep| {
            let now = start + Duration::from_secs(sweep * 2);
            publication.update(summary(usize::try_from(sweep / 2 % 2).unwrap()), true, now)
        });
        let published = changes.filter(|published| *published).count();
        assert!((40..=44).contains(&published), "{published} in 20 minutes");
    }
}
