//! The uploads and uses of this server in shards that other members own, until their owners ask for them.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::document::LedgerLine;
use super::entry::LedgerEntry;
use crate::digest::Digest;
use crate::peers::Shard;

/// The most events that wait for their owners; older ones are lost.
pub(crate) const MAX_EVENTS: usize = 32_768;
/// The most events of one batch.
const MAX_BATCH: usize = 10_000;

/// A change that the owner of a shard has to know.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A use, at a time in ms since 1970.
    Use(i64),
    /// An upload, with what is known of the content.
    Upload(LedgerEntry),
}

/// The events of a process, numbered from 1.
#[derive(Debug, Default)]
pub(super) struct Journal {
    events: VecDeque<(Digest, Event)>,
    /// The number of the first event that is still there, less 1.
    dropped: u64,
}

/// The events of some shards.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JournalPage {
    /// The random id of the process that they are of.
    pub(super) epoch: String,
    /// The number of the last event that the batch covers.
    pub(super) last: u64,
    /// Further events wait.
    pub(super) more: bool,
    /// Nothing before the batch is lost.
    pub(super) complete: bool,
    /// The uses.
    #[serde(default)]
    pub(super) uses: Vec<(String, i64)>,
    /// The uploads.
    #[serde(default)]
    pub(super) uploads: Vec<LedgerLine>,
}

impl Journal {
    /// Adds an event.
    pub(super) fn push(&mut self, digest: Digest, event: Event) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
            self.dropped += 1;
        }
        self.events.push_back((digest, event));
    }

    /// Returns the last uses of content of a shard.
    pub(super) fn uses_of(&self, shard: u8) -> Vec<(Digest, i64)> {
        let uses = self.events.iter().filter_map(|(digest, event)| match event {
            Event::Use(at) if Shard::of_blob(digest).index() == shard => Some((digest.clone(), *at)),
            _ => None,
        });
        uses.collect()
    }

    /// Returns the events after the one with the number `after`, of the shards that are `wanted`.
    pub(super) fn batch(&self, epoch: &str, after: Option<u64>, wanted: impl Fn(u8) -> bool) -> JournalPage {
        let first = after.unwrap_or(0).max(self.dropped);
        let skipped = usize::try_from(first - self.dropped).unwrap_or(usize::MAX);
        let mut batch = JournalPage {
            epoch: epoch.to_owned(),
            last: first,
            complete: after.is_some_and(|after| after >= self.dropped),
            ..JournalPage::default()
        };
        for (digest, event) in self.events.iter().skip(skipped) {
            if batch.uses.len() + batch.uploads.len() >= MAX_BATCH {
                batch.more = true;
                break;
            }
            batch.last += 1;
            if !wanted(Shard::of_blob(digest).index()) {
                continue;
            }
            match event {
                Event::Use(at) => batch.uses.push((digest.to_string(), *at)),
                Event::Upload(entry) => batch.uploads.push(LedgerLine::new(digest, entry)),
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn digest(number: u64) -> Digest {
        Digest::compute(Algorithm::Sha256, &number.to_le_bytes())
    }

    fn uses(batch: &JournalPage) -> Vec<i64> {
        batch.uses.iter().map(|(_, at)| *at).collect()
    }

    /// An owner that asks after the last event that it has gets each event once.
    #[test]
    fn each_event_is_sent_once() {
        let mut journal = Journal::default();
        for at in 0..5 {
            journal.push(digest(1), Event::Use(at));
        }
        let first = journal.batch("e", None, |_| true);
        assert_eq!(
            (uses(&first), first.last, first.complete),
            (vec![0, 1, 2, 3, 4], 5, false)
        );
        journal.push(digest(1), Event::Use(9));
        let next = journal.batch("e", Some(first.last), |_| true);
        assert_eq!((uses(&next), next.last, next.complete), (vec![9], 6, true));
        assert_eq!(uses(&journal.batch("e", Some(6), |_| true)), Vec::<i64>::new());
        assert_eq!(
            uses(&journal.batch("e", Some(u64::MAX), |_| true)),
            Vec::<i64>::new()
        );
    }

    /// Events of other shards are left out, and counted.
    #[test]
    fn events_of_other_shards_are_left_out() {
        let mut journal = Journal::default();
        for number in 0..100 {
            journal.push(digest(number), Event::Use(1));
        }
        let batch = journal.batch("e", None, |shard| shard < 128);
        assert!(batch.uses.len() < 100 && batch.last == 100);
    }

    /// A long journal loses its oldest events, says so, and is sent in parts.
    #[test]
    fn long_journal_is_bounded() {
        let mut journal = Journal::default();
        let all = MAX_EVENTS as u64 + 10;
        for _ in 0..all {
            journal.push(digest(1), Event::Use(1));
        }
        let (mut after, mut sent) = (Some(3), 0);
        loop {
            let batch = journal.batch("e", after, |_| true);
            assert_eq!(batch.complete, sent > 0);
            sent += batch.uses.len();
            after = Some(batch.last);
            if !batch.more {
                break;
            }
        }
        assert_eq!((sent, after), (MAX_EVENTS, Some(all)));
    }
}
