//! Watches with exponential back-off after failures, which are logged once.

use std::{fmt::Debug, future::ready};

use futures::{Stream, StreamExt, stream};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

/// Watches an API. Failed watches are retried after half a minute at most and logged under `kind`; they are no items.
pub(crate) fn follow<K>(
    kind: String,
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut failing = Failing::default();
    with_backoff(watcher(api, config), watcher::DefaultBackoff::default()).filter_map(move |event| {
        let is_changed = failing.update(event.is_err());
        match &event {
            Err(error) if is_changed => {
                tracing::warn!(kind, %error, "watch failed; it is retried until it succeeds");
            }
            Ok(_) if is_changed => tracing::info!(kind, "watch works again"),
            _ => {}
        }
        ready(event.is_ok().then_some(event))
    })
}

/// Adds a delay after each failure, which grows with failures in a row.
///
/// `watcher` yields `Init` before it sends the list request, and a success resets the back-off: `Init` is held back until
/// another event follows.
fn with_backoff<K: Send>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    backoff: impl Backoff,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send {
    let mut has_init = false;
    let events = events.flat_map(move |event| {
        let is_held_back = std::mem::take(&mut has_init);
        let ready = match event {
            Ok(Event::Init) => {
                has_init = true;
                [None, None]
            }
            Ok(event) => [is_held_back.then_some(Ok(Event::Init)), Some(Ok(event))],
            Err(error) => [None, Some(Err(error))],
        };
        stream::iter(ready.into_iter().flatten())
    });
    events.backoff(backoff)
}

/// The state of a watch: it fails or works.
#[derive(Default)]
struct Failing(bool);

impl Failing {
    /// Sets the state, and returns whether it changed.
    fn update(&mut self, is_failing: bool) -> bool {
        std::mem::replace(&mut self.0, is_failing) != is_failing
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use parking_lot::Mutex;

    use super::*;

    /// The number of failures in a row before each delay.
    #[derive(Clone, Default)]
    struct Waits {
        in_a_row: usize,
        seen: Arc<Mutex<Vec<usize>>>,
    }

    impl Iterator for Waits {
        type Item = Duration;

        fn next(&mut self) -> Option<Duration> {
            self.in_a_row += 1;
            self.seen.lock().push(self.in_a_row);
            Some(Duration::ZERO)
        }
    }

    impl Backoff for Waits {
        fn reset(&mut self) {
            self.in_a_row = 0;
        }
    }

    #[tokio::test]
    async fn rejected_list_is_retried_with_backoff() {
        let refused = || [Ok(Event::Init), Err(watcher::Error::NoResourceVersion)];
        let listed = [Ok(Event::Init), Ok(Event::InitApply(1)), Ok(Event::InitDone)];
        let events = (0..3).flat_map(|_| refused()).chain(listed).chain(refused());
        let waits = Waits::default();
        let events: Vec<_> = with_backoff(stream::iter(events), waits.clone()).collect().await;
        assert_eq!(*waits.seen.lock(), [1, 2, 3, 1]);
        let good: Vec<Event<i32>> = events.into_iter().flatten().collect();
        assert!(
            matches!(good[..], [Event::Init, Event::InitApply(1), Event::InitDone]),
            "{good:?}"
        );
    }

    #[test]
    fn only_a_change_is_reported() {
        let mut failing = Failing::default();
        let changes = [false, true, true, true, false, false, true].map(|now| failing.update(now));
        assert_eq!(changes, [false, true, false, false, true, false, true]);
    }
}
