//! See [`crate::fuzzing`].

#![expect(clippy::unwrap_used, reason = "what does not hold ends the fuzzer")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Seek;
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{MemfdFlags, memfd_create};

use super::durable::{IoError, on};
use super::path::Layout;
use super::scheduler_state::{self, ContentKind};
use crate::digest::Digest;
use crate::name::{Reference, Repository};

/// Whatever a client names lies below the root, and is found again as what it was.
pub(crate) fn paths(name: &str, reference: &str) {
    let root = Path::new("/var/lib/registry");
    let layout = Layout::new(root, "docker.io".parse().unwrap());
    for host in ["docker.io", "quay.io", "localhost:5000"] {
        let Ok(name) = name.parse() else { return };
        let repository = Repository {
            host: host.parse().unwrap(),
            name,
        };
        assert_eq!(
            layout.repository_at(&layout.repository(&repository)),
            Some(repository.clone())
        );
        for path in files(&layout, &repository, reference) {
            let below = path.strip_prefix(root).unwrap();
            let plain = below
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            assert!(
                plain && path.to_str().unwrap().find('\0').is_none(),
                "{}",
                path.display()
            );
            // As written: no part was dropped on the way.
            assert_eq!(below.components().collect::<PathBuf>(), below);
        }
    }
}

fn files(layout: &Layout, repository: &Repository, reference: &str) -> Vec<PathBuf> {
    let mut files = vec![layout.repository(repository), layout.tags(repository)];
    match reference.parse() {
        Ok(Reference::Tag(tag)) => files.push(layout.tag_current(repository, &tag)),
        Ok(Reference::Digest(digest)) => files.extend([
            layout.blob_data(&digest),
            layout.layer_link(repository, &digest),
            layout.revision_link(repository, &digest),
        ]),
        Err(_) => {}
    }
    files
}

/// Checks that a written state parses to the same entries.
pub(crate) fn scheduler_state(data: &[u8]) {
    let mut first = BTreeMap::<Digest, i64>::new();
    let whole = scheduler_state::read_from(data, |digest, expires| _ = first.insert(digest, expires));
    if whole.is_err() {
        return;
    }
    let mut file = File::from(memfd_create("state", MemfdFlags::empty()).unwrap());
    let name = "library/app".parse().unwrap();
    let path = Path::new("state");
    scheduler_state::write::<IoError>(file.try_clone().unwrap(), path, |writer| {
        first.iter().try_for_each(|(digest, expires)| {
            let expires = Timestamp::from_millisecond(*expires).unwrap();
            writer
                .entry(&name, digest, expires, ContentKind::Blob)
                .map_err(on("write", path))
        })
    })
    .unwrap();
    file.rewind().unwrap();
    let mut second = BTreeMap::new();
    scheduler_state::read_from(file, |digest, expires| _ = second.insert(digest, expires)).unwrap();
    assert_eq!(second, first);
}
