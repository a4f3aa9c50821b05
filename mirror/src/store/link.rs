//! Links: files that hold the digest of what they point to.

use std::io::ErrorKind;
use std::path::Path;

use crate::digest::Digest;
use crate::store::durable::{self, IoError, Scratch, on};

/// The longest text that a link may hold: a SHA-512 digest and a line end.
const LONGEST: u64 = "sha512:".len() as u64 + 128 + 1;

/// Returns the digest that a link names; `None` if there is no link, or a damaged one (empty, truncated, not a file).
pub(super) fn read(path: &Path) -> Result<Option<Digest>, IoError> {
    match durable::read(path, LONGEST) {
        Ok(bytes) => Ok(parse(&bytes)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidData => Ok(None),
            _ => Err(on("read", path)(error)),
        },
    }
}

/// Parses the content of a link.
pub(super) fn parse(bytes: &[u8]) -> Option<Digest> {
    std::str::from_utf8(bytes).ok()?.trim_end().parse().ok()
}

/// Returns the digest that a link with a digest as its name holds. It may hold a digest of the other algorithm for the
/// same bytes; another digest of the same algorithm is damage.
pub(super) fn read_named(path: &Path, name: &Digest) -> Result<Option<Digest>, IoError> {
    let target = read(path)?;
    Ok(target.filter(|target| target == name || target.algorithm() != name.algorithm()))
}

/// Makes a link point to a digest; writes nothing where it does already.
pub(super) fn write(scratch: &Scratch, path: &Path, digest: &Digest) -> Result<(), IoError> {
    if read(path)?.as_ref() == Some(digest) {
        return Ok(());
    }
    scratch.write(path, digest.as_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::store::durable::Ours;
    use std::fs;
    use test_case::test_case;

    #[test_case(b"" ; "empty")]
    #[test_case(b"sha256:e3b0" ; "cut short")]
    #[test_case(b"\xff\xfe" ; "not text")]
    fn a_damaged_link_points_to_nothing(bytes: &[u8]) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("link");
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    /// A missing link, or a directory in its place, points to nothing.
    #[test]
    fn missing_link_points_to_nothing() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(&root.path().join("link")).unwrap(), None);
        assert_eq!(read(root.path()).unwrap(), None);
    }

    #[test]
    fn named_link_holds_own_digest_or_other_algorithm() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("link");
        let name = Digest::compute(Algorithm::Sha256, b"x");
        for (target, leads) in [
            (name.clone(), true),
            (Digest::compute(Algorithm::Sha512, b"x"), true),
            (Digest::compute(Algorithm::Sha256, b"y"), false),
        ] {
            fs::write(&path, target.as_str()).unwrap();
            assert_eq!(read_named(&path, &name).unwrap(), leads.then_some(target));
        }
    }

    /// A link reads back, and an equal link is not written again.
    #[test]
    fn link_reads_back_and_is_written_once() {
        let root = tempfile::tempdir().unwrap();
        let scratch = Scratch::sweep(root.path().join("scratch"), Ours(vec![])).unwrap();
        let (path, digest) = (
            root.path().join("a/link"),
            Digest::compute(Algorithm::Sha512, b"x"),
        );
        write(&scratch, &path, &digest).unwrap();
        let before = fs::metadata(&path).unwrap();
        write(&scratch, &path, &digest).unwrap();
        assert_eq!(read(&path).unwrap(), Some(digest));
        assert_eq!(
            std::os::unix::fs::MetadataExt::ino(&before),
            std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap())
        );
    }
}
