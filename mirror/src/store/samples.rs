//! Samples of the server's totals, which the index keeps for a day.

use crate::store::index::Op;
use crate::store::{Error, Inner, Store};

/// The most samples that wait for a write of the index.
const MAX_PENDING: usize = 60;

impl Store {
    /// Keeps a sample of the server's totals, at a time in ms since 1970, with the next write of recorded uses.
    pub(crate) fn record_sample(&self, at: i64, sample: Vec<u8>) {
        let mut pending = self.inner.maintenance.samples.lock();
        if pending.len() < MAX_PENDING {
            pending.push(Op::Sample(at, sample));
        }
    }

    /// Returns the samples of the last day with their times, the oldest first.
    pub(crate) async fn samples(&self) -> Result<Vec<(i64, Vec<u8>)>, Error> {
        self.blocking(|inner| Ok(inner.index.samples()?)).await
    }
}

impl Inner {
    /// Takes the samples that wait for a write.
    pub(super) fn take_samples(&self) -> Vec<Op> {
        std::mem::take(&mut *self.maintenance.samples.lock())
    }
}

#[cfg(test)]
mod tests {
    use crate::store::image_query::tests::open;

    const HOUR: i64 = 60 * 60 * 1_000;

    /// Samples outlast a restart, for a day: one older sample stays as the start of the others.
    #[tokio::test]
    async fn samples_outlast_a_restart_for_a_day() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path()).await;
        for hour in 0..30_u8 {
            store.record_sample(i64::from(hour) * HOUR, vec![hour]);
        }
        assert_eq!(
            store.samples().await.unwrap(),
            [],
            "nothing is written before a flush"
        );
        store.flush().await;
        drop(store);
        let kept = open(root.path()).await.samples().await.unwrap();
        let hours: Vec<_> = kept.iter().map(|(_, sample)| sample[0]).collect();
        assert_eq!(hours, (5..30).collect::<Vec<_>>());
        assert_eq!(kept[0].0, 5 * HOUR);
    }
}
