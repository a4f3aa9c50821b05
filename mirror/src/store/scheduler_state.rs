//! `scheduler-state.json`: when Distribution expires what it has cached.
//!
//! A JSON object from `name@digest` to [`Item`]. Read and written entry by entry, as it may be large.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer as _};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::RepositoryName;
use crate::store::durable::{self, IoError, on};
use crate::store::no_links;

/// The most that an entry may take. Names have at most 255 characters: what is longer is none of Distribution's, and
/// would be held in memory.
const ENTRY: u64 = 16 << 10;

/// The kind of content of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentKind {
    Blob,
    Manifest,
}

/// An entry as Distribution writes it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item<'a> {
    key: std::borrow::Cow<'a, str>,
    expiry_data: std::borrow::Cow<'a, str>,
    entry_type: u8,
}

/// Tells whether the file changed; 0 where there is none.
pub(super) fn fingerprint(path: &Path) -> u64 {
    no_links::file_metadata(path).map_or(0, |found| {
        let times = [found.mtime().unsigned_abs(), found.mtime_nsec().unsigned_abs()];
        [found.ino(), found.len(), times[0], times[1]]
            .into_iter()
            .fold(1, |sum: u64, part| sum.wrapping_mul(0x0100_0000_01b3) ^ part)
            .max(1)
    })
}

/// Calls for every entry that names a digest, with its expiry in ms since 1970. No file: no entries.
pub(super) fn read(path: &Path, found: impl FnMut(Digest, i64)) -> Result<(), IoError> {
    let file = match durable::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(on("open", path)(error)),
    };
    read_from(BufReader::new(file), found).map_err(on("read", path))
}

pub(super) fn read_from(reader: impl Read, found: impl FnMut(Digest, i64)) -> io::Result<()> {
    let left = &Cell::new(ENTRY);
    let mut json = serde_json::Deserializer::from_reader(Bounded { reader, left });
    json.deserialize_map(Entries { found, left })?;
    Ok(json.end()?)
}

/// Fails where more is read than is left for an entry.
struct Bounded<'l, R> {
    reader: R,
    left: &'l Cell<u64>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::new(ErrorKind::InvalidData, "an entry is too long"));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.reader.read(&mut buffer[..most])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}

/// Visits entries one by one.
struct Entries<'l, F> {
    found: F,
    left: &'l Cell<u64>,
}

impl<'de, F: FnMut(Digest, i64)> Visitor<'de> for Entries<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of expiry entries")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let entry = map.next_value_seed(Lenient)?;
            let digest = key.rsplit_once('@').and_then(|(_, digest)| digest.parse().ok());
            let expires = entry.and_then(|text| text.parse::<Timestamp>().ok());
            if let (Some(digest), Some(expires)) = (digest, expires) {
                (self.found)(digest, expires.as_millisecond());
            }
            self.left.set(ENTRY);
        }
        Ok(())
    }
}

/// The expiry of an entry, whatever else it holds.
struct Lenient;

impl<'de> DeserializeSeed<'de> for Lenient {
    type Value = Option<String>;

    fn deserialize<D: serde::Deserializer<'de>>(self, entry: D) -> Result<Option<String>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Any {
            Entry {
                #[serde(rename = "ExpiryData")]
                expiry: String,
            },
            Other(IgnoredAny),
        }
        Ok(match Any::deserialize(entry)? {
            Any::Entry { expiry } => Some(expiry),
            Any::Other(_) => None,
        })
    }
}

/// Writes entries as they come.
pub(super) struct Writer<'w>(<&'w mut Json as serde::Serializer>::SerializeMap);

type Json = serde_json::Serializer<BufWriter<File>>;

/// Writes the whole file: `entries` gets a writer for them. The file is synced.
pub(super) fn write<E: From<IoError>>(
    file: File,
    path: &Path,
    entries: impl FnOnce(&mut Writer<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut json = serde_json::Serializer::new(BufWriter::new(file));
    let map = json
        .serialize_map(None)
        .map_err(|error| on("write", path)(error.into()))?;
    let mut writer = Writer(map);
    entries(&mut writer)?;
    writer.0.end().map_err(|error| on("write", path)(error.into()))?;
    let mut buffer = json.into_inner();
    buffer
        .flush()
        .and_then(|()| buffer.get_ref().sync_all())
        .map_err(|error| on("write", path)(error).into())
}

impl Writer<'_> {
    pub(super) fn entry(
        &mut self,
        name: &RepositoryName,
        digest: &Digest,
        expires: Timestamp,
        kind: ContentKind,
    ) -> std::io::Result<()> {
        let key = format!("{name}@{digest}");
        let item = Item {
            expiry_data: expires.to_string().into(),
            entry_type: match kind {
                ContentKind::Blob => 0,
                ContentKind::Manifest => 1,
            },
            key: key.as_str().into(),
        };
        Ok(self.0.serialize_entry(&key, &item)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::digest::Algorithm;

    fn read_text(text: &str) -> Result<Vec<(Digest, i64)>, IoError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        fs::write(&path, text).unwrap();
        let mut found = Vec::new();
        read(&path, |digest, expires| found.push((digest, expires)))?;
        Ok(found)
    }

    /// The reader parses the scheduler state that Distribution writes.
    #[test]
    fn distributions_scheduler_state_is_read() {
        let digest = Digest::compute(Algorithm::Sha256, b"");
        let text = format!(
            r#"{{"library/a@{digest}":{{"Key":"library/a@{digest}","ExpiryData":"2026-11-30T03:00:00.5+02:00","EntryType":1}}}}"#
        );
        let expires: Timestamp = "2026-11-30T01:00:00.5Z".parse().unwrap();
        assert_eq!(read_text(&text).unwrap(), [(digest, expires.as_millisecond())]);
    }

    /// Entries that do not parse are left out.
    #[test]
    fn invalid_entries_are_left_out() {
        let digest = Digest::compute(Algorithm::Sha256, b"");
        let text = format!(r#"{{"a":{{}},"b@{digest}":7,"c@{digest}":{{"ExpiryData":"soon"}},"@":[1]}}"#);
        assert_eq!(read_text(&text).unwrap(), []);
    }

    /// An entry without an end is an error and takes bounded memory.
    #[test]
    fn entry_memory_is_bounded() {
        let digest = Digest::compute(Algorithm::Sha256, b"");
        let good = format!(r#"{{"a@{digest}":{{"ExpiryData":"2026-11-30T01:00:00Z"}},"#);
        for endless in [
            "\"aaaa",
            "\"a\":{\"ExpiryData\":\"2026",
            "\"a\":[[0,0,0,0,",
            "    ",
        ] {
            let part = endless.as_bytes().last().copied().unwrap();
            let reader = good.as_bytes().chain(endless.as_bytes()).chain(io::repeat(part));
            let mut found = 0;
            let read = read_from(reader, |_, _| found += 1);
            assert!(read.is_err(), "{endless}");
            assert_eq!(found, 1, "{endless}");
        }
    }

    #[test]
    fn truncated_state_is_an_error_missing_one_is_empty() {
        assert!(read_text(r#"{"a":{"#).is_err());
        assert!(read(Path::new("/nonexistent/state"), |_, _| ()).is_ok());
    }

    /// The scheduler state that is written reads back.
    #[test]
    fn written_scheduler_state_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let (digest, expires) = (Digest::compute(Algorithm::Sha512, b"x"), Timestamp::UNIX_EPOCH);
        write::<IoError>(File::create(&path).unwrap(), &path, |writer| {
            writer
                .entry(&"a/b".parse().unwrap(), &digest, expires, ContentKind::Blob)
                .map_err(on("write", &path))
        })
        .unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains(r#""EntryType":0"#) && text.contains("1970-01-01T00:00:00Z"),
            "{text}"
        );
        assert_eq!(read_text(&text).unwrap(), [(digest, 0)]);
    }

    #[test]
    fn the_fingerprint_changes_with_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        assert_eq!(fingerprint(&path), 0);
        fs::write(&path, "{}").unwrap();
        let before = fingerprint(&path);
        fs::write(&path, "{ }").unwrap();
        assert_ne!(fingerprint(&path), before);
    }
}
