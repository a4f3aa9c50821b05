//! The account of the cache's room: what is stored, promised and announced, and the limit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{StatVfs, statvfs};

use crate::config::MaxSize;
use crate::name::Host;
use parking_lot::Mutex;

/// The share of the file system that stays free where there is no limit: a twentieth.
const GUARD: u64 = 20;

/// The share of the cache up to which the files of an upstream evict content that are of unknown size, or larger than a
/// manifest names: an eighth.
const UNBOUNDED: u64 = 8;

/// So many files can be made at least: content is a file in directories of its own, with links likewise.
const SPARE_FILES: u64 = 32;

/// The account: what is stored, what is promised to unfinished files, and the limit.
#[derive(Debug)]
pub(super) struct DiskQuota {
    root: PathBuf,
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    stored: u64,
    blobs: u64,
    promised: u64,
    /// Bytes that each upstream announced for its unfinished files beyond those promised. They count against further
    /// announcements of the same upstream only: no other loses room by an announcement.
    announced: HashMap<Host, u64>,
    /// Bytes that are promised to the unfinished files of each upstream that are not bounded.
    unbounded: HashMap<Host, u64>,
    /// Bytes of uploads that another registry left behind: they take room, and evicting gives none of it back.
    uploads: u64,
    max_size: Option<MaxSize>,
    /// `true` while the index is incomplete and the stored bytes are unknown: only free space counts then.
    paused: bool,
}

/// The bytes that must be evicted before a reservation succeeds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shortfall {
    /// This many bytes of the cache.
    Evict(u64),
    /// Evicting cannot free enough space.
    Never,
}

/// The room of one unfinished file; given back on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    space: Arc<DiskQuota>,
    origin: Host,
    /// Bytes that are promised.
    bytes: u64,
    /// Bytes that are announced and not promised yet.
    announced: u64,
    /// The size of the file is known.
    is_bounded: bool,
}

impl DiskQuota {
    pub(super) fn new(root: &Path, max_size: Option<MaxSize>) -> Arc<Self> {
        Arc::new(Self {
            root: root.to_owned(),
            account: Mutex::new(Account {
                max_size,
                ..Account::default()
            }),
        })
    }

    /// Admits a file of `announced` bytes from an upstream, unless evicting everything would not make room for it. The
    /// reservation is empty: room is taken as bytes come, since an announcement is no more than a claim. The second value
    /// is the number of bytes that would have to go for it.
    pub(super) fn admit(
        self: &Arc<Self>,
        origin: &Host,
        announced: u64,
        is_bounded: bool,
    ) -> Result<(Reservation, u64), Shortfall> {
        let mut account = self.account.lock();
        let claimed = account.announced.get(origin).copied().unwrap_or_default();
        let claimed = claimed.saturating_add(announced);
        let short = match self.short(&account, claimed, 0) {
            Some(Shortfall::Never) => return Err(Shortfall::Never),
            Some(Shortfall::Evict(short)) => short,
            None => 0,
        };
        account.announced.insert(origin.clone(), claimed);
        let room = Reservation {
            space: self.clone(),
            origin: origin.clone(),
            bytes: 0,
            announced,
            is_bounded,
        };
        Ok((room, short))
    }

    /// Adds content that was not counted before.
    pub(super) fn add(&self, bytes: u64, blobs: u64) {
        let mut account = self.account.lock();
        account.stored = account.stored.saturating_add(bytes);
        account.blobs = account.blobs.saturating_add(blobs);
    }

    /// Subtracts removed content.
    pub(super) fn sub(&self, bytes: u64) {
        let mut account = self.account.lock();
        account.stored = account.stored.saturating_sub(bytes);
        account.blobs = account.blobs.saturating_sub(1);
    }

    pub(super) fn set_max_size(&self, max_size: Option<MaxSize>) {
        self.account.lock().max_size = max_size;
    }

    /// Begins with what the index counts; `paused` while that is not all.
    pub(super) fn begin(&self, stored: u64, blobs: u64, paused: bool) {
        let mut account = self.account.lock();
        (account.stored, account.blobs, account.paused) = (stored, blobs, paused);
    }

    /// Sets the bytes of uploads that were left behind.
    pub(super) fn set_uploads(&self, bytes: u64) {
        self.account.lock().uploads = bytes;
    }

    /// Marks all stored content as counted.
    pub(super) fn resume(&self) {
        self.account.lock().paused = false;
    }

    /// Returns `true` while the stored bytes are unknown.
    pub(super) fn is_uncounted(&self) -> bool {
        self.account.lock().paused
    }

    /// Returns the bytes that are taken, the number of blobs, and the limit in bytes.
    pub(super) fn usage(&self) -> (u64, u64, Option<u64>) {
        let account = self.account.lock();
        let limit = limit(account.max_size, self.file_system().as_ref());
        (
            account.stored.saturating_add(account.uploads),
            account.blobs,
            limit,
        )
    }

    /// Returns the bytes by which content is over the limit now, as after a reload that lowered it. Uploads that were
    /// left behind do not count: evicting content would not remove them. Without a limit only new content evicts.
    pub(super) fn excess(&self) -> u64 {
        let account = self.account.lock();
        match self.short(&account, 0, 0) {
            Some(Shortfall::Evict(bytes)) if account.max_size.is_some() => bytes,
            _ => 0,
        }
    }

    /// Returns `true` if not a single byte fits, even after evicting everything.
    pub(super) fn is_full(&self) -> bool {
        matches!(self.short(&self.account.lock(), 1, 0), Some(Shortfall::Never))
    }

    fn file_system(&self) -> Option<StatVfs> {
        statvfs(&self.root).ok()
    }

    /// Returns what is short for `more` bytes, of which `displaced` were evicted for them already. Content does not give
    /// way to uploads that were left behind: new content displaces its own size at most.
    fn short(&self, account: &Account, more: u64, displaced: u64) -> Option<Shortfall> {
        let system = self.file_system();
        let limit = limit(account.max_size, system.as_ref()).filter(|_| !account.paused);
        let over = limit.map_or(0, |limit| {
            let content = account
                .stored
                .saturating_add(account.promised)
                .saturating_add(more);
            let over = content.saturating_sub(limit);
            let in_all = content.saturating_add(account.uploads).saturating_sub(limit);
            in_all.min(over.max(more.saturating_sub(displaced)))
        });
        // Evicted files may take a while to free their space: no more is evicted for the share of others.
        let missing = system.map_or(0, |system| {
            let with_share = missing(&system, limit.is_none(), more).saturating_sub(displaced);
            with_share.max(missing(&system, false, more))
        });
        match over.max(missing) {
            0 => None,
            // As long as the stored content is unknown, its order of use is unknown, too.
            bytes if account.paused || bytes > account.stored => Some(Shortfall::Never),
            bytes => Some(Shortfall::Evict(bytes)),
        }
    }

    /// Returns the bytes up to which the unbounded files of an upstream evict content.
    fn share(&self, account: &Account) -> u64 {
        let limit = limit(account.max_size, self.file_system().as_ref());
        limit.unwrap_or(account.stored) / UNBOUNDED
    }
}

impl Reservation {
    /// Takes more, for which `displaced` bytes were evicted already; or returns how much is short and changes nothing.
    pub(super) fn grow(&mut self, bytes: u64, displaced: u64) -> Result<(), Shortfall> {
        let space = self.space.clone();
        let mut account = space.account.lock();
        if let Some(short) = space.short(&account, bytes, displaced) {
            let held = account.unbounded.get(&self.origin).copied().unwrap_or_default();
            if !self.is_bounded && held.saturating_add(bytes) > space.share(&account) {
                return Err(Shortfall::Never);
            }
            return Err(short);
        }
        account.promised = account.promised.saturating_add(bytes);
        if !self.is_bounded {
            *account.unbounded.entry(self.origin.clone()).or_default() += bytes;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.retract(&mut account, bytes);
        Ok(())
    }

    /// Takes up to so many bytes back from what is announced.
    fn retract(&mut self, account: &mut Account, bytes: u64) {
        let bytes = bytes.min(self.announced);
        self.announced -= bytes;
        subtract(&mut account.announced, &self.origin, bytes);
    }

    /// Takes all bytes back from what is promised.
    fn release(&mut self, account: &mut Account) {
        let bytes = std::mem::take(&mut self.bytes);
        account.promised = account.promised.saturating_sub(bytes);
        if !self.is_bounded {
            subtract(&mut account.unbounded, &self.origin, bytes);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Turns the reservation into stored content of this many bytes.
    pub(super) fn keep(mut self, bytes: u64) {
        let space = self.space.clone();
        let mut account = space.account.lock();
        self.release(&mut account);
        account.stored = account.stored.saturating_add(bytes);
        account.blobs += 1;
        // The drop of the reservation locks the account.
        drop(account);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let space = self.space.clone();
        let mut account = space.account.lock();
        self.release(&mut account);
        self.retract(&mut account, u64::MAX);
    }
}

/// Subtracts from the bytes of an upstream, which leaves the table at 0.
fn subtract(table: &mut HashMap<Host, u64>, origin: &Host, bytes: u64) {
    if let Some(counted) = table.get_mut(origin) {
        *counted = counted.saturating_sub(bytes);
        if *counted == 0 {
            table.remove(origin);
        }
    }
}

fn limit(max_size: Option<MaxSize>, system: Option<&StatVfs>) -> Option<u64> {
    match (max_size?, system) {
        (MaxSize::Bytes(bytes), _) => Some(bytes),
        (MaxSize::Percent(percent), Some(system)) => {
            let total = system.f_blocks.saturating_mul(system.f_frsize);
            Some(total / 100 * u64::from(percent))
        }
        (MaxSize::Percent(_), None) => None,
    }
}

/// Returns the number of bytes that the disk lacks for `more`, with a share left free for others if it is guarded.
/// Space that unfinished files reserved is allocated already, so the file system counts it.
fn missing(system: &StatVfs, guarded: bool, more: u64) -> u64 {
    let total = system.f_blocks.saturating_mul(system.f_frsize);
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    let share = if guarded { total / GUARD } else { 0 };
    // Whatever goes gives files back, too. Some file systems have as many as there is room for, and tell none.
    let of_files = u64::from(system.f_files > 0 && system.f_favail < SPARE_FILES);
    share.saturating_add(more).saturating_sub(free).max(of_files)
}
