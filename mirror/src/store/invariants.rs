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
use super::{default_host, index, link, uploads};
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

/// Checks the small files of a cache directory, after a byte that says which one it is: what is taken from it is written in
/// a way that means the same, and names nothing outside of the root.
pub(crate) fn cache_file(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    match kind % 4 {
        0 => {
            if let Some(digest) = link::parse(bytes) {
                assert_eq!(link::parse(digest.as_str().as_bytes()), Some(digest.clone()));
                assert_eq!(index::digest_of(&index::key_of(&digest)), Some(digest));
            }
        }
        1 => {
            if let Ok(host) = default_host::parse(bytes) {
                assert_eq!(default_host::parse(host.as_str().as_bytes()).as_ref(), Ok(&host));
                paths(host.as_str(), "latest");
                let layout = Layout::new(Path::new("/r"), "docker.io".parse().unwrap());
                assert_eq!(
                    layout.upstream(&host).parent(),
                    Some(&*layout.repositories().join("_upstreams"))
                );
            }
        }
        2 => {
            if let Some(started) = uploads::parse_started(bytes) {
                assert_eq!(
                    uploads::parse_started(started.to_string().as_bytes()),
                    Some(started)
                );
            }
        }
        _ => index_row(bytes),
    }
}

/// Checks a row of the index: its key and its link read back.
fn index_row(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let mut part = || std::str::from_utf8(parts.next().unwrap_or_default()).unwrap_or_default();
    let (repository, name) = (part(), part());
    for kind in 0..=3 {
        if let Some(link) = index::Link::from_key(kind, repository, name) {
            let again = index::Link::from_key(link.kind(), &link.repository().to_string(), link.name());
            assert_eq!(again, Some(link));
        }
    }
    if let Some(digest) = index::digest_of(bytes) {
        assert_eq!(index::key_of(&digest), bytes);
    }
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
