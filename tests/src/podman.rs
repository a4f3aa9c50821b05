//! podman, with storage of its own.

use std::path::Path;

use tokio::process::Command;

/// Returns true if Podman can run here: as root, since an account has no ranges of user IDs by default. Otherwise the
/// test is left out with a message.
///
/// # Panics
/// With `CI=true` for users other than root.
pub fn is_possible() -> bool {
    let possible = rustix::process::getuid().is_root();
    if !possible {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "podman is run as root"
        );
        eprintln!("skipped: podman is run as root");
    }
    possible
}

/// Returns a command of Podman with its images in `home`, this `registries.conf`, and nothing of this machine's
/// configuration.
pub fn command(home: &Path, registries_conf: &Path) -> Command {
    let mut command = Command::new("podman");
    command
        .env("HOME", home)
        .env("CONTAINERS_REGISTRIES_CONF", registries_conf);
    for (flag, directory) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
        command.arg(flag).arg(home.join(directory));
    }
    command.args(["--storage-driver", "vfs", "--events-backend", "none"]);
    command
}

/// The content of the file for `--signature-policy`.
pub const ANY_SIGNATURE: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
