//! Watches that go on whatever the API server answers, ever more slowly, and say so once.

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

/// Follows what an API gives, and asks again after half a minute at most. Failures are no items: they are told here, under
/// the name of what is followed.
pub(super) fn follow<K>(
    what: String,
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut failing = Failing::default();
    patiently(watcher(api, config), watcher::DefaultBackoff::default()).filter_map(move |event| {
        let change = failing.changed(event.is_err());
        match &event {
            Err(error) if change => {
                tracing::warn!(what, %error, "a watch failed; it is tried again until it succeeds");
            }
            Ok(_) if change => tracing::info!(what, "a watch that failed goes on"),
            _ => {}
        }
        ready(event.is_ok().then_some(event))
    })
}

/// Waits longer after each failure in a row.
///
/// A list is announced as if it had succeeded before it is asked for, which would start the waiting over: the announcement
/// is held back until something follows it.
fn patiently<K: Send>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    backoff: impl Backoff,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send {
    let mut is_announced = false;
    let events = events.flat_map(move |event| {
        let announced = std::mem::take(&mut is_announced);
        let told = match event {
            Ok(Event::Init) => {
                is_announced = true;
                [None, None]
            }
            Ok(event) => [announced.then_some(Ok(Event::Init)), Some(Ok(event))],
            Err(error) => [None, Some(Err(error))],
        };
        stream::iter(told.into_iter().flatten())
    });
    events.backoff(backoff)
}

/// Whether a watch fails for now.
#[derive(Default)]
struct Failing(bool);

impl Failing {
    /// Whether that is another than before.
    fn changed(&mut self, failing: bool) -> bool {
        std::mem::replace(&mut self.0, failing) != failing
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use super::*;

    /// How many failures followed each other, each time that it was waited.
    #[derive(Clone, Default)]
    struct Waits {
        in_a_row: usize,
        seen: Arc<Mutex<Vec<usize>>>,
    }

    impl Iterator for Waits {
        type Item = Duration;

        fn next(&mut self) -> Option<Duration> {
            self.in_a_row += 1;
            self.seen.lock().unwrap().push(self.in_a_row);
            Some(Duration::ZERO)
        }
    }

    impl Backoff for Waits {
        fn reset(&mut self) {
            self.in_a_row = 0;
        }
    }

    #[tokio::test]
    async fn a_list_that_is_refused_is_asked_for_ever_later_and_announced_once_it_succeeds() {
        let refused = || [Ok(Event::Init), Err(watcher::Error::NoResourceVersion)];
        let listed = [Ok(Event::Init), Ok(Event::InitApply(1)), Ok(Event::InitDone)];
        let events = (0..3).flat_map(|_| refused()).chain(listed).chain(refused());
        let waits = Waits::default();
        let told: Vec<_> = patiently(stream::iter(events), waits.clone()).collect().await;
        assert_eq!(*waits.seen.lock().unwrap(), [1, 2, 3, 1]);
        let good: Vec<Event<i32>> = told.into_iter().flatten().collect();
        assert!(
            matches!(good[..], [Event::Init, Event::InitApply(1), Event::InitDone]),
            "{good:?}"
        );
    }

    #[test]
    fn only_a_change_is_told() {
        let mut failing = Failing::default();
        let told = [false, true, true, true, false, false, true].map(|now| failing.changed(now));
        assert_eq!(told, [false, true, false, false, true, false, true]);
    }
}
