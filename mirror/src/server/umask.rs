//! The modes of new files: those of the cache may belong to private images.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::Mode;
use rustix::process::umask;

/// The umask that the process was started with.
static GIVEN: OnceLock<Mode> = OnceLock::new();

/// Sets the umask of the process, which gives files of the cache the modes 0640 and 0750, or stricter ones. Call it
/// before the first thread starts.
pub fn restrict_new_files() {
    let given = umask(Mode::RWXG | Mode::RWXO);
    umask(given | Mode::WGRP | Mode::RWXO);
    // A second call would store the restricted one.
    let _ = GIVEN.set(given);
}

/// Gives a unix socket the mode that the given umask asks for: a client needs permission to write to it.
pub(super) fn open_socket_to_clients(path: &Path) -> io::Result<()> {
    let Some(given) = GIVEN.get() else {
        return Ok(());
    };
    let mode = Mode::from_raw_mode(0o777).difference(*given);
    fs::set_permissions(path, Permissions::from_mode(mode.as_raw_mode()))
}
