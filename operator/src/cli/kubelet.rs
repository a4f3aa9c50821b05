//! Files as a kubelet lays out a mounted Secret: a directory that is swapped as a whole behind the link `..data`.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::Path,
};

use tempfile::TempDir;

/// Only for this user's eyes.
const PRIVATE_DIRECTORY: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;

/// Creates a private directory, which is removed when it is dropped.
pub(super) fn private_directory() -> io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix("registry-mirror-")
        .permissions(Permissions::from_mode(PRIVATE_DIRECTORY))
        .tempdir()
}

/// Makes a directory with these files in it.
pub(super) fn mount(directory: &Path, files: &BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    const VERSION: &str = "..version-1";
    let version = directory.join(VERSION);
    fs::create_dir_all(&version)?;
    for (name, contents) in files {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE_FILE)
            .open(version.join(name))?;
        file.write_all(contents)?;
        symlink(Path::new("..data").join(name), directory.join(name))?;
    }
    symlink(VERSION, directory.join("..data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mounted files are private and readable through the link.
    #[test]
    fn mounted_files_are_private_and_linked() {
        let directory = private_directory().unwrap();
        mount(
            &directory.path().join("secret"),
            &BTreeMap::from([("a".to_owned(), b"x".to_vec())]),
        )
        .unwrap();
        let file = directory.path().join("secret/a");
        assert_eq!(fs::read(&file).unwrap(), b"x");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            PRIVATE_FILE
        );
        assert_eq!(
            fs::metadata(directory.path()).unwrap().permissions().mode() & 0o777,
            PRIVATE_DIRECTORY
        );
        assert!(directory.path().join("secret/..data").is_symlink());
    }
}
