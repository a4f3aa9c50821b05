//! The cached repositories, listed from the directories.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::name::Repository;
use crate::store::durable::{self, IoError, on};
use crate::store::path::Layout;
use crate::store::{Error, Inner, Store};

/// The most bytes of names in a [`RepositoryList`]; more than a page of the longest names has.
const MAX_LIST: usize = 8 << 20;

/// The names of repositories, from some name on.
#[derive(Debug, Default)]
pub struct RepositoryList {
    /// The names in lexical order; those of other upstreams than the default one as `host/name`.
    pub names: BTreeSet<String>,
    /// The bytes of the names.
    bytes: usize,
    /// `true` if more names follow, which would have taken more than `MAX_LIST`.
    pub is_cut: bool,
}

impl Store {
    /// Returns the names of the cached repositories that `is_listed`, as far as they follow `after` and fit into a list.
    pub async fn repositories(
        &self,
        after: Option<String>,
        is_listed: impl Fn(&Repository) -> bool + Send + 'static,
    ) -> Result<RepositoryList, Error> {
        self.blocking(move |inner| inner.list_repositories(after.as_deref(), is_listed))
            .await
    }
}

impl Inner {
    fn list_repositories(
        &self,
        after: Option<&str>,
        is_listed: impl Fn(&Repository) -> bool,
    ) -> Result<RepositoryList, Error> {
        let mut list = RepositoryList::default();
        each_repository(&self.layout, &mut |repository| {
            if !is_listed(&repository) {
                return;
            }
            let name = if repository.host == *self.layout.default_host() {
                repository.name.to_string()
            } else {
                repository.to_string()
            };
            if after.is_none_or(|after| name.as_str() > after) {
                list.insert(name, MAX_LIST);
            }
        })?;
        Ok(list)
    }
}

impl RepositoryList {
    /// Adds a name; the last ones go where the list would have more than `limit` bytes.
    fn insert(&mut self, name: String, limit: usize) {
        // A name behind one that went is left out too.
        if self.is_cut && self.names.last().is_none_or(|last| name > *last) {
            return;
        }
        let length = name.len();
        if self.names.insert(name) {
            self.bytes += length;
        }
        while self.bytes > limit
            && let Some(last) = self.names.pop_last()
        {
            self.bytes -= last.len();
            self.is_cut = true;
        }
    }
}

/// Calls for every repository on disk, with memory for one path's siblings at a time.
pub(super) fn each_repository(layout: &Layout, found: &mut dyn FnMut(Repository)) -> Result<(), IoError> {
    each_directory(layout, &mut |directory, own| {
        if own
            .iter()
            .any(|path| path.ends_with("_manifests") || path.ends_with("_layers"))
        {
            layout.repository_at(directory).into_iter().for_each(&mut *found);
        }
        Ok(())
    })
}

/// A visitor of directories; it gets the path, and those of the directories in it that no repository's name can have
/// (`_layers`, `_manifests`, `_uploads`).
type Visit<'a> = dyn FnMut(&Path, &[PathBuf]) -> Result<(), IoError> + 'a;

/// Calls for every directory that is a repository or the start of a name of one. Links are not followed.
pub(super) fn each_directory(layout: &Layout, found: &mut Visit<'_>) -> Result<(), IoError> {
    let base = layout.repositories();
    visit(layout, &base, found)?;
    for host in directories(&base.join("_upstreams"))? {
        visit(layout, &host, found)?;
    }
    Ok(())
}

/// Visits a directory and those below it that can be the start of a repository's name: a name's length bounds their depth.
fn visit(layout: &Layout, directory: &Path, found: &mut Visit<'_>) -> Result<(), IoError> {
    let (own, below): (Vec<_>, Vec<_>) = directories(directory)?.into_iter().partition(|path| {
        path.file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"_"))
    });
    found(directory, &own)?;
    below
        .iter()
        .filter(|path| layout.repository_at(path).is_some())
        .try_for_each(|path| visit(layout, path, found))
}

/// The directories in a directory; none where it is missing.
pub(super) fn directories(directory: &Path) -> Result<Vec<PathBuf>, IoError> {
    let entries = match durable::list(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(on("list", directory)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(on("list", directory))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list above its bytes keeps the first names, whatever the order of the directories.
    #[test]
    fn long_list_keeps_the_first_names() {
        let mut list = RepositoryList::default();
        for name in ["ccc", "aaa", "bbb", "aaa", "d"] {
            list.insert(name.to_owned(), 7);
        }
        let names: Vec<_> = list.names.iter().map(String::as_str).collect();
        assert_eq!((names, list.bytes, list.is_cut), (vec!["aaa", "bbb"], 6, true));
    }
}
