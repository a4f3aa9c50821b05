//! Worker threads that serve connections, each with a runtime of its own.
//!
//! In a runtime with several threads, tasks migrate to other workers, which costs a wake-up and a cold CPU cache.
//! Connections with many small requests gain nothing by that. Here a connection stays on its worker.

use std::io;
use std::pin::Pin;
use std::thread::{self, JoinHandle};

use tokio::runtime::Builder;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tracing::warn;

use super::BLOCKING_GRACE;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The workers: one for each processor. They end when this is dropped, and close the connections that they serve.
pub(super) struct Workers {
    all: Vec<Worker>,
    next: usize,
}

struct Worker {
    tasks: UnboundedSender<Task>,
    handle: JoinHandle<()>,
}

impl Workers {
    pub(super) fn start() -> Self {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let started = (0..count).map(|_| Worker::start()).collect::<io::Result<_>>();
        let all = started.unwrap_or_else(|error| {
            warn!(%error, "cannot start worker threads: connections share the runtime of the server");
            Vec::new()
        });
        Self { all, next: 0 }
    }

    /// Gives the task to the next worker in turn.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.next = self.next.wrapping_add(1);
        let Some(worker) = self.all.get(self.next % self.all.len().max(1)) else {
            tokio::spawn(task);
            return;
        };
        // A worker receives until its sender is dropped.
        let _ = worker.tasks.send(Box::pin(task));
    }

    /// Closes the remaining connections, and waits for their writes to the disk, for [`BLOCKING_GRACE`].
    pub(super) async fn stop(self) {
        let handles: Vec<_> = self.all.into_iter().map(|worker| worker.handle).collect();
        let join = move || handles.into_iter().for_each(|handle| drop(handle.join()));
        // Joining cannot fail: a worker that panicked has ended too.
        let _ = tokio::task::spawn_blocking(join).await;
    }
}

impl Worker {
    fn start() -> io::Result<Self> {
        let (tasks, received) = mpsc::unbounded_channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = thread::Builder::new()
            .name("connections".to_owned())
            .spawn(move || {
                runtime.block_on(drive(received));
                runtime.shutdown_timeout(BLOCKING_GRACE);
            })?;
        Ok(Self { tasks, handle })
    }
}

async fn drive(mut received: UnboundedReceiver<Task>) {
    while let Some(task) = received.recv().await {
        tokio::spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn workers_drive_their_tasks_until_stopped() {
        let mut workers = Workers::start();
        let (say, mut hear) = mpsc::unbounded_channel();
        let (never, cut) = oneshot::channel::<()>();
        workers.spawn(async move {
            std::future::pending::<()>().await;
            drop(never);
        });
        for _ in 0..workers.all.len() {
            let say = say.clone();
            workers.spawn(async move { say.send(thread::current().id()).unwrap() });
        }
        let mut at = Vec::new();
        for _ in 0..workers.all.len() {
            at.push(hear.recv().await.unwrap());
        }
        at.sort_by_key(|id| format!("{id:?}"));
        at.dedup();
        assert_eq!(at.len(), workers.all.len());
        workers.stop().await;
        assert!(cut.await.is_err());
    }
}
