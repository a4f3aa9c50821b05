//! Threads that serve connections, each by itself.
//!
//! A runtime of many threads shares all work among them: what one hears from the network another takes over, which has
//! to be woken, and to fetch it from the first one's caches. Connections that want little and often gain nothing by
//! that. Here each stays where it was put.

use std::io;
use std::pin::Pin;
use std::thread::{self, JoinHandle};

use tokio::runtime::Builder;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tracing::warn;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One for each processor. They end once this is dropped, and cut what they still serve.
pub(super) struct Threads {
    all: Vec<Thread>,
    next: usize,
}

struct Thread {
    given: UnboundedSender<Task>,
    handle: JoinHandle<()>,
}

impl Threads {
    pub(super) fn start() -> Self {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let started = (0..count).map(|_| Thread::start()).collect::<io::Result<_>>();
        let all = started.unwrap_or_else(|error| {
            warn!(%error, "connections have no threads of their own");
            Vec::new()
        });
        Self { all, next: 0 }
    }

    /// Has the next one drive this, in turn.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.next = self.next.wrapping_add(1);
        let Some(thread) = self.all.get(self.next % self.all.len().max(1)) else {
            tokio::spawn(task);
            return;
        };
        // It takes whatever comes for as long as there is a sender.
        let _ = thread.given.send(Box::pin(task));
    }

    /// Cuts what they still serve, and waits for what they wrote to the disk.
    pub(super) async fn end(self) {
        let handles: Vec<_> = self.all.into_iter().map(|thread| thread.handle).collect();
        let ended = move || handles.into_iter().for_each(|handle| drop(handle.join()));
        // Nothing here can fail: a thread that panicked has ended too.
        let _ = tokio::task::spawn_blocking(ended).await;
    }
}

impl Thread {
    fn start() -> io::Result<Self> {
        let (given, taken) = mpsc::unbounded_channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = thread::Builder::new()
            .name("connections".to_owned())
            .spawn(move || runtime.block_on(drive(taken)))?;
        Ok(Self { given, handle })
    }
}

async fn drive(mut taken: UnboundedReceiver<Task>) {
    while let Some(task) = taken.recv().await {
        tokio::spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn each_drives_what_it_was_given_and_ends_with_what_is_left() {
        let mut threads = Threads::start();
        let (say, mut hear) = mpsc::unbounded_channel();
        let (never, cut) = oneshot::channel::<()>();
        threads.spawn(async move {
            std::future::pending::<()>().await;
            drop(never);
        });
        for _ in 0..threads.all.len() {
            let say = say.clone();
            threads.spawn(async move { say.send(thread::current().id()).unwrap() });
        }
        let mut at = Vec::new();
        for _ in 0..threads.all.len() {
            at.push(hear.recv().await.unwrap());
        }
        at.sort_by_key(|id| format!("{id:?}"));
        at.dedup();
        assert_eq!(at.len(), threads.all.len());
        threads.end().await;
        assert!(cut.await.is_err());
    }
}
