//! Rebuilds the index from the files: after its loss, and after another registry used the directory.

use std::path::Path;
use std::sync::{Arc, Weak};

use crate::digest::Digest;
use crate::name::{Repository, Tag};
use crate::store::catalog::{directories, each_repository};
use crate::store::index::{Index, IndexFailure, Link, Op, Order};
use crate::store::path::{ALGORITHMS, Layout};
use crate::store::{Error, Inner, IoError, link, no_links, scheduler_state};

/// Changes that are written at once.
const BATCH: usize = 4096;

/// Rebuilds the index. It gives up silently when the store is closed; the next start continues.
pub(super) fn run(store: &Weak<Inner>) -> Result<(), Error> {
    let Some(inner) = store.upgrade() else {
        return Ok(());
    };
    let (layout, now) = (inner.layout.clone(), inner.clock.now().as_millisecond());
    drop(inner);
    let mut learn = Learn {
        store,
        ops: Vec::new(),
    };
    let walked = each_blob(&layout, now, &mut learn)
        .and_then(|()| each_link(&layout, &mut |digest, link| learn.push(Op::Link(digest, link))))
        .and_then(|()| learn.flush());
    let finished = walked.and_then(|()| learn.open()?.finish_rebuild());
    match finished {
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Closed) | Ok(()) => Ok(()),
    }
}

/// A visitor of links; it gets the digest that a link points to.
type VisitLink<'a, E> = dyn FnMut(Digest, Link) -> Result<(), E> + 'a;

/// Why the walk ends early.
enum Stop {
    Closed,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Batches changes, and holds the store only while it writes them.
struct Learn<'s> {
    store: &'s Weak<Inner>,
    ops: Vec<Op>,
}

impl Learn<'_> {
    fn open(&self) -> Result<Arc<Inner>, Stop> {
        self.store.upgrade().ok_or(Stop::Closed)
    }

    fn push(&mut self, op: Op) -> Result<(), Stop> {
        self.ops.push(op);
        if self.ops.len() < BATCH {
            Ok(())
        } else {
            self.flush()
        }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let inner = self.open()?;
        let added = inner.index.write(std::mem::take(&mut self.ops))?;
        inner.space.add(added.bytes, added.blobs);
        Ok(())
    }
}

fn each_blob(layout: &Layout, now: i64, learn: &mut Learn<'_>) -> Result<(), Stop> {
    for algorithm in ALGORITHMS {
        for prefix in directories(&layout.blobs().join(algorithm.as_str()))? {
            for directory in directories(&prefix)? {
                let data = directory.join("data");
                let found = no_links::file_metadata(&data).ok();
                if let (Some(digest), Some(found)) = (layout.digest_at(&data), found) {
                    learn.push(Op::Discover {
                        digest,
                        size: found.len(),
                        now,
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// Visits every link on the disk, with the digest that it points to.
pub(super) fn each_link<E: From<IoError>>(layout: &Layout, visit: &mut VisitLink<'_, E>) -> Result<(), E> {
    let mut repositories = Vec::new();
    each_repository(layout, &mut |repository| repositories.push(repository))?;
    for repository in &repositories {
        let directory = layout.repository(repository);
        named_links(&directory.join("_layers"), &mut |name, target| {
            visit(target, Link::Layer(repository.clone(), name))
        })?;
        named_links(&directory.join("_manifests/revisions"), &mut |name, target| {
            visit(target, Link::Revision(repository.clone(), name))
        })?;
        for tag in directories(&layout.tags(repository))? {
            tag_links(layout, repository, &tag, visit)?;
        }
    }
    Ok(())
}

fn tag_links<E: From<IoError>>(
    layout: &Layout,
    repository: &Repository,
    directory: &Path,
    visit: &mut VisitLink<'_, E>,
) -> Result<(), E> {
    let name = directory.file_name().and_then(|name| name.to_str());
    let Some(tag) = name.and_then(|name| name.parse::<Tag>().ok()) else {
        return Ok(());
    };
    let current = link::read(&layout.tag_current(repository, &tag))?;
    let mut push = |target| visit(target, Link::Tag(repository.clone(), tag.clone()));
    named_links(&directory.join("index"), &mut |_, target| push(target))?;
    current.into_iter().try_for_each(&mut push)
}

/// Every link of a directory `<algorithm>/<hex>/link`: its name and what it points to.
fn named_links<E: From<IoError>>(
    base: &Path,
    found: &mut dyn FnMut(Digest, Digest) -> Result<(), E>,
) -> Result<(), E> {
    for algorithm in ALGORITHMS {
        for directory in directories(&base.join(algorithm.as_str()))? {
            let hex = directory
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let Ok(name) = format!("{}:{hex}", algorithm.as_str()).parse() else {
                continue;
            };
            if let Some(target) = link::read_named(&directory.join("link"), &name)? {
                found(name, target)?;
            }
        }
    }
    Ok(())
}

impl Inner {
    /// Runs the steps that need an index of all files.
    fn finish_rebuild(&self) -> Result<(), Stop> {
        self.drop_entries_without_files()?;
        let seen = scheduler_state::fingerprint(&self.layout.scheduler_state());
        self.import_scheduler_state()?;
        self.index.write(vec![Op::StateSeen(seen), Op::Complete(true)])?;
        self.notify_missed();
        self.space.resume();
        Ok(self.trim()?)
    }

    fn drop_entries_without_files(&self) -> Result<(), Error> {
        let mut last = None;
        loop {
            let batch = self.index.oldest(Order::Fetch, last.as_ref(), BATCH)?;
            for (_, digest) in &batch {
                let data = self.layout.blob_data(digest);
                let exists = || no_links::file_metadata(&data).is_ok();
                if !exists() {
                    self.remove_unless(digest, exists)?;
                }
            }
            match batch.into_iter().next_back() {
                Some(newest) => last = Some(newest),
                None => return Ok(()),
            }
        }
    }

    fn import_scheduler_state(&self) -> Result<(), Error> {
        let path = self.layout.scheduler_state();
        let since = self.opened.as_millisecond();
        let mut ops = Vec::new();
        let mut failed = None;
        let read = scheduler_state::read(&path, |digest, expires| {
            ops.push(Op::Import {
                digest,
                expires,
                since,
            });
            if ops.len() == BATCH
                && let Err(error) = self.index.write(std::mem::take(&mut ops))
            {
                failed = Some(error);
            }
        });
        self.index.write(ops)?;
        match (read, failed) {
            (_, Some(failure)) => Err(failure.into()),
            // Distribution starts afresh from a state that it can't read; so do we.
            (Err(error), None) => {
                tracing::warn!(%error, path = %path.display(), "the expiry state is not readable: expiry counts from now");
                Ok(())
            }
            (Ok(()), None) => Ok(()),
        }
    }
}

/// Marks the index as incomplete where `scheduler-state.json` is not as we left it: another registry has
/// worked here.
pub(super) fn distrust_after_others(index: &Index, layout: &Layout) -> Result<(), IndexFailure> {
    let now = scheduler_state::fingerprint(&layout.scheduler_state());
    if index.is_complete() && index.state_seen()? != now {
        index.write(vec![Op::Complete(false)])?;
    }
    Ok(())
}
