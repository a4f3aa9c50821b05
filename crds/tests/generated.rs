//! What is generated from the types and committed: `UPDATE=1 cargo test -p registry-mirror-crds --test generated`
//! writes it anew.

use std::{env, fs, io, path::Path};

/// Fails where a committed file is not what would be generated now, or makes it so.
fn up_to_date(path: &str, content: &str) -> io::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, content)?;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == content,
        "{} is not what the types say: run UPDATE=1 cargo test -p registry-mirror-crds --test generated",
        path.display()
    );
    Ok(())
}

#[test]
fn the_committed_definition_is_what_the_types_say() {
    up_to_date("registrymirrors.yaml", &crds::definition::yaml().unwrap()).unwrap();
}
