//! Directories whose files change all at once, as kubelet makes them for Secrets and the like: each visible name
//! is a link through `..data`, and `..data` is a link that is swapped by a rename.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rand::RngExt;

/// File names (they may hold slashes) with their bytes.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Makes `directory` show exactly `files`; nothing is touched where it does.
pub(super) fn write(directory: &Path, files: &Files, mode: u32) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let old = fs::read_link(directory.join(DATA)).ok();
    if let Some(old) = &old
        && holds(&directory.join(old), files)?
    {
        return Ok(());
    }
    let generation = format!("..{:016x}", rand::rng().random::<u64>());
    fill(&directory.join(&generation), files, mode)?;
    symlink(&generation, directory.join(NEXT))?;
    fs::rename(directory.join(NEXT), directory.join(DATA))?;
    link_names(directory, files)?;
    match old {
        Some(old) => fs::remove_dir_all(directory.join(old)),
        None => Ok(()),
    }
}

fn holds(generation: &Path, files: &Files) -> io::Result<bool> {
    let mut count = 0;
    let mut directories = vec![generation.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(generation).ok().and_then(Path::to_str);
            let wanted = name.and_then(|name| files.get(name));
            if wanted.is_none_or(|wanted| fs::read(&path).ok().as_ref() != Some(wanted)) {
                return Ok(false);
            }
            count += 1;
        }
    }
    Ok(count == files.len())
}

fn fill(generation: &Path, files: &Files, mode: u32) -> io::Result<()> {
    fs::create_dir(generation)?;
    for (name, bytes) in files {
        let path = generation.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Links the first component of each name, and removes other links.
fn link_names(directory: &Path, files: &Files) -> io::Result<()> {
    let tops: Vec<&str> = files.keys().filter_map(|name| name.split('/').next()).collect();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(".."));
        if !ours && !tops.iter().any(|top| name == **top) {
            fs::remove_file(entry.path())?;
        }
    }
    for top in tops {
        match symlink(Path::new(DATA).join(top), directory.join(top)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn files(entries: &[(&str, &str)]) -> Files {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
        entries.iter().map(owned).collect()
    }

    fn shown(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !name.starts_with(".."));
        names.sort();
        names
    }

    /// An update swaps all files at once and leaves no other.
    #[test]
    fn update_swaps_all_files_at_once() {
        let scratch = Scratch::new("atomic").unwrap();
        let directory = scratch.path().join("volume");
        write(&directory, &files(&[("a", "1"), ("b", "1"), ("d/x", "1")]), 0o640).unwrap();
        assert_eq!(shown(&directory), ["a", "b", "d"]);
        let first = fs::read_link(directory.join(DATA)).unwrap();
        assert_eq!(fs::read_link(directory.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(
            fs::metadata(directory.join("a")).unwrap().permissions().mode() & 0o777,
            0o640
        );

        write(&directory, &files(&[("a", "2"), ("c", "2")]), 0o640).unwrap();
        assert_eq!(shown(&directory), ["a", "c"]);
        assert_eq!(fs::read(directory.join("a")).unwrap(), b"2");
        assert!(!directory.join(first).exists());
    }

    /// Files that did not change are not swapped.
    #[test]
    fn unchanged_files_are_not_swapped() {
        let scratch = Scratch::new("atomic").unwrap();
        let same = files(&[("a", "1"), ("d/x", "2")]);
        write(scratch.path(), &same, 0o644).unwrap();
        let first = fs::read_link(scratch.path().join(DATA)).unwrap();
        write(scratch.path(), &same, 0o644).unwrap();
        assert_eq!(fs::read_link(scratch.path().join(DATA)).unwrap(), first);
    }
}
