//! Directories that go away with the process, however it ends.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Set to keep what tests leave in their scratch directories: logs, keys, caches.
const KEEP: &str = "REGISTRY_MIRROR_TEST_KEEP";

/// A directory below the system's temporary one, removed on drop, and by a janitor process where the owner
/// is a static that is never dropped or a test run that was killed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    janitor: Option<Child>,
}

impl Scratch {
    /// Makes an empty directory whose name starts with `registry-mirror-PURPOSE-`.
    pub fn new(purpose: &str) -> io::Result<Self> {
        let path = tempfile::Builder::new()
            .prefix(&format!("registry-mirror-{purpose}-"))
            .tempdir()?
            .keep();
        let janitor = if std::env::var_os(KEEP).is_some() {
            None
        } else {
            Some(janitor(&path)?)
        };
        Ok(Self { path, janitor })
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory `name` in it.
    pub fn subdirectory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Writes the file `name` in it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, content)?;
        Ok(path)
    }
}

/// Waits for the end of its standard input, which is the end of this process at the latest.
///
/// It sits in a process group of its own, out of reach of the terminal's Ctrl-C, and tries again while daemons
/// that are being killed still write.
fn janitor(path: &Path) -> io::Result<Child> {
    Command::new("sh")
        .args(["-c", r#"read -r _; until rm -rf "$0"; do sleep 0.1; done"#])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            // A failed janitor leaves the directory in the temporary one.
            let _ = janitor.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scratch directory is removed with its content on drop.
    #[test]
    fn scratch_is_removed_on_drop() {
        let scratch = Scratch::new("scratch").unwrap();
        let file = scratch.write("file", "content").unwrap();
        let path = scratch.path().to_owned();
        assert!(file.exists());
        drop(scratch);
        assert!(!path.exists());
    }
}
