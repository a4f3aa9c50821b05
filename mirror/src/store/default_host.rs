//! The owner of the unprefixed repositories, and their migration when the default upstream changes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::name::{Host, InvalidName};
use crate::store::durable::{self, IoError, Ours, Scratch, on, remove, sync_dir};
use crate::store::path::Layout;

/// The port that no name of a host has any more, as `reg:443` and `reg` are one registry.
const DEFAULT_PORT: &str = ":443";
/// The longest file that holds the name of a host.
const LONGEST: u64 = 1024;

/// Makes the unprefixed tree the default upstream's: the previous one's tree goes below its host, and the new one's comes
/// up. Every step is one rename, and continues after a crash.
pub(super) fn migrate_default_host(layout: &Layout, scratch: &Scratch) -> Result<(), IoError> {
    let places = Places::new(layout);
    let new = layout.default_host();
    let owner = read(&places.owner)?;
    if let Some(plan) = read(&places.plan)? {
        // A move was cut off; it may have been towards a host that is not the default one any more.
        places.resume(layout, scratch, owner.as_ref(), &plan)?;
        return migrate_default_host(layout, scratch);
    }
    drop_default_ports(&layout.repositories().join("_upstreams"), &scratch.ours)?;
    match owner {
        Some(owner) if owner == *new => Ok(()),
        Some(owner) if owner.as_str().strip_suffix(DEFAULT_PORT) == Some(new.as_str()) => {
            scratch.write(&places.owner, new.as_str().as_bytes())
        }
        None => scratch.write(&places.owner, new.as_str().as_bytes()),
        Some(owner) => {
            tracing::info!(from = %owner, to = %new, "the default upstream changed: its repositories move");
            scratch.write(&places.plan, new.as_str().as_bytes())?;
            places.resume(layout, scratch, Some(&owner), new)
        }
    }
}

struct Places {
    owner: PathBuf,
    plan: PathBuf,
    /// The tree of the host before, on its way.
    old: PathBuf,
    /// The tree of the new host, not yet in place.
    new: PathBuf,
}

impl Places {
    fn new(layout: &Layout) -> Self {
        Self {
            owner: layout.owner(),
            plan: layout.own().join("owner-next"),
            old: layout.own().join("owner-move/old"),
            new: layout.own().join("owner-move/new"),
        }
    }

    fn resume(
        &self,
        layout: &Layout,
        scratch: &Scratch,
        owner: Option<&Host>,
        next: &Host,
    ) -> Result<(), IoError> {
        let (tree, ours) = (layout.repositories(), &scratch.ours);
        if let Some(owner) = owner.filter(|owner| *owner != next) {
            if !self.old.exists() && !self.new.exists() {
                step(ours, &tree, &self.old)?;
            }
            if !self.new.exists() {
                step(ours, &self.old.join("_upstreams").join(next.as_str()), &self.new)?;
                ours.create_dir_all(&self.new)?;
            }
            step(ours, &self.old.join("_upstreams"), &self.new.join("_upstreams"))?;
            step(ours, &self.old, &self.new.join("_upstreams").join(owner.as_str()))?;
            // From here on the new tree is the default one's, in place or not.
            scratch.write(&self.owner, next.as_str().as_bytes())?;
        }
        step(ours, &self.new, &tree)?;
        remove(&self.plan)?;
        sync_dir(&layout.own())
    }
}

/// Renames the trees of hosts that an earlier version kept with the default port in their names.
fn drop_default_ports(upstreams: &Path, ours: &Ours) -> Result<(), IoError> {
    let entries = match durable::list(upstreams) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(on("read", upstreams)(error)),
    };
    for entry in entries {
        let name = entry.map_err(on("read", upstreams))?.file_name();
        let host = name.to_str().and_then(|name| name.strip_suffix(DEFAULT_PORT));
        if let Some(to) = host.map(|host| upstreams.join(host)).filter(|to| !to.exists()) {
            step(ours, &upstreams.join(&name), &to)?;
        }
    }
    Ok(())
}

/// Returns whether nothing is at a path, also as a file is where its directory would be.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Moves a directory, unless it is gone because that was done before.
fn step(ours: &Ours, from: &Path, to: &Path) -> Result<(), IoError> {
    if !from.exists() {
        return Ok(());
    }
    ours.place(from, to)?;
    from.parent().map_or(Ok(()), sync_dir)
}

/// Parses the name of a host in a file.
pub(super) fn parse(bytes: &[u8]) -> Result<Host, InvalidName> {
    String::from_utf8_lossy(bytes).trim().parse()
}

fn read(path: &Path) -> Result<Option<Host>, IoError> {
    match durable::read(path, LONGEST) {
        // A guess would serve the tags of one registry as those of another.
        Ok(bytes) => parse(&bytes).map(Some).map_err(|error| {
            on("find a registry host in", path)(std::io::Error::new(ErrorKind::InvalidData, error))
        }),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => {
            let kind = error.kind();
            let reason = match kind {
                ErrorKind::IsADirectory => "it is not a regular file".to_owned(),
                ErrorKind::InvalidData => format!("it is larger than {LONGEST} bytes"),
                _ => error.to_string(),
            };
            Err(on("read", path)(std::io::Error::new(
                kind,
                format!(
                    "{reason}; write the host of the upstream into it that the repositories without a host are of"
                ),
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn migrate_to(root: &Path, host: &str) {
        let layout = Layout::new(root, host.parse().unwrap());
        fs::create_dir_all(layout.own()).unwrap();
        migrate_default_host(&layout, &Scratch::sweep(layout.scratch(), layout.ours()).unwrap()).unwrap();
    }

    fn repository(root: &Path, path: &str) -> PathBuf {
        root.join("docker/registry/v2/repositories").join(path)
    }

    fn filled() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "nginx/_layers",
            "_upstreams/b.example/app/_layers",
            "_upstreams/c.example/db/_layers",
        ] {
            fs::create_dir_all(repository(root.path(), path)).unwrap();
        }
        migrate_to(root.path(), "a.example");
        root
    }

    fn assert_moved_to_b(root: &Path) {
        for path in [
            "app/_layers",
            "_upstreams/a.example/nginx/_layers",
            "_upstreams/c.example/db/_layers",
        ] {
            assert!(repository(root, path).is_dir(), "{path} is missing");
        }
        for path in ["nginx", "_upstreams/b.example", "_upstreams/a.example/_upstreams"] {
            assert!(!repository(root, path).exists(), "{path} is still there");
        }
    }

    /// Version 0.1 took `a.example` and `a.example:443` for two hosts.
    #[test]
    fn default_port_in_names_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        migrate_to(root.path(), "a.example:443");
        for path in [
            "nginx/_layers",
            "_upstreams/b.example:443/app/_layers",
            "_upstreams/c.example:443/db/_layers",
            "_upstreams/c.example/web/_layers",
        ] {
            fs::create_dir_all(repository(root.path(), path)).unwrap();
        }
        for _restart in 0..2 {
            migrate_to(root.path(), "a.example");
            for path in [
                "nginx/_layers",
                "_upstreams/b.example/app/_layers",
                "_upstreams/c.example/web/_layers",
            ] {
                assert!(repository(root.path(), path).is_dir(), "{path} is missing");
            }
        }
    }

    /// The error for an owner file of another kind names the file, the cause and the action.
    #[test]
    fn unreadable_owner_file_is_named() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "a.example".parse().unwrap());
        fs::create_dir_all(layout.own()).unwrap();
        let owner = layout.own().join("owner");
        let refusal = || {
            let scratch = Scratch::sweep(layout.scratch(), layout.ours()).unwrap();
            migrate_default_host(&layout, &scratch).unwrap_err().to_string()
        };
        let assert_named = |reason: &str| {
            let text = refusal();
            for part in [owner.to_str().unwrap(), reason, "write the host of the upstream"] {
                assert!(text.contains(part), "{text}");
            }
        };
        rustix::fs::mkfifoat(rustix::fs::CWD, &owner, rustix::fs::Mode::RWXU).unwrap();
        assert_named("it is not a regular file");
        fs::remove_file(&owner).unwrap();
        fs::create_dir(&owner).unwrap();
        assert_named("it is not a regular file");
        fs::remove_dir(&owner).unwrap();
        fs::write(&owner, "x".repeat(2000)).unwrap();
        assert_named("it is larger than 1024 bytes");
    }

    /// The same default upstream moves no tree.
    #[test]
    fn same_default_upstream_moves_nothing() {
        let root = filled();
        migrate_to(root.path(), "a.example");
        assert!(repository(root.path(), "nginx/_layers").is_dir());
    }

    /// A change of the default upstream swaps the trees of the repositories, and a second change swaps them back.
    #[test]
    fn new_default_upstream_swaps_trees_and_back() {
        let root = filled();
        migrate_to(root.path(), "b.example");
        assert_moved_to_b(root.path());
        migrate_to(root.path(), "a.example");
        assert!(repository(root.path(), "nginx/_layers").is_dir());
        assert!(repository(root.path(), "_upstreams/b.example/app/_layers").is_dir());
        assert!(!root.path().join("_mirror/owner-next").exists());
    }

    /// A default upstream without stored repositories starts empty.
    #[test]
    fn unknown_default_upstream_starts_empty() {
        let root = filled();
        migrate_to(root.path(), "new.example");
        assert!(repository(root.path(), "_upstreams/a.example/nginx/_layers").is_dir());
        assert!(!repository(root.path(), "nginx").exists());
    }

    /// The error for a damaged owner file names the file.
    #[test]
    fn damaged_owner_error_names_the_file() {
        let root = filled();
        fs::write(root.path().join("_mirror/owner"), "").unwrap();
        let layout = Layout::new(root.path(), "a.example".parse().unwrap());
        let scratch = Scratch::sweep(layout.scratch(), layout.ours()).unwrap();
        let error = migrate_default_host(&layout, &scratch).unwrap_err().to_string();
        assert!(error.contains("_mirror/owner"), "{error}");
    }

    /// A move that was interrupted after any step resumes.
    #[test]
    fn interrupted_move_resumes_at_any_step() {
        let own = |root: &Path, path: &str| root.join("_mirror").join(path);
        for steps in 0..=6 {
            let root = filled();
            let root = root.path();
            fs::write(own(root, "owner-next"), "b.example").unwrap();
            fs::create_dir_all(own(root, "owner-move")).unwrap();
            let moves = [
                (repository(root, ""), own(root, "owner-move/old")),
                (
                    own(root, "owner-move/old/_upstreams/b.example"),
                    own(root, "owner-move/new"),
                ),
                (
                    own(root, "owner-move/old/_upstreams"),
                    own(root, "owner-move/new/_upstreams"),
                ),
                (
                    own(root, "owner-move/old"),
                    own(root, "owner-move/new/_upstreams/a.example"),
                ),
            ];
            for (from, to) in moves.iter().take(steps) {
                fs::rename(from, to).unwrap();
            }
            if steps > 4 {
                fs::write(own(root, "owner"), "b.example").unwrap();
            }
            if steps > 5 {
                fs::rename(own(root, "owner-move/new"), repository(root, "")).unwrap();
            }
            migrate_to(root, "b.example");
            assert_moved_to_b(root);
        }
    }
}
