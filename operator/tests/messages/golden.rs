//! Golden files with all messages of one kind: `UPDATE=1 cargo test -p registry-mirror` writes them.

use std::{env, fs, path::Path};

/// Compares messages with a golden file, or writes it.
pub(crate) fn assert_golden(file: &str, messages: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/messages")
        .join(file);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, messages).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == messages,
        "{} differs, UPDATE=1 writes it:\n{messages}",
        path.display()
    );
}
