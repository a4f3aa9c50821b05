//! The object of a shard in the bucket, and the same document between replicas.
//!
//! The first line is a header with the hash of all further ones; each of these is one piece of content as JSON. Unknown
//! fields are ignored. A document of another version, or whose hash does not match, is damaged.

use std::fmt::{self, Formatter};

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::entry::{LedgerEntry, MAX_LINKS};
use super::table::ShardTable;
use crate::digest::{Algorithm, Digest};

/// The largest document that is read, in bytes: what the memory of a shard takes as text, and more.
pub(crate) const MAX_LEDGER: usize = 4 << 20;
const VERSION: u32 = 1;

/// The header of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    version: u32,
    /// The random id of the process that wrote it.
    writer: String,
    /// The time of the write, in ms since 1970.
    written: i64,
    /// The digest of all further lines.
    digest: String,
}

/// One piece of content.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LedgerLine {
    digest: String,
    size: u64,
    used: i64,
    fetched: i64,
    #[serde(default)]
    links: FirstLinks,
}

/// The first links of a list: further ones are read past, so that a list of millions takes no memory.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct FirstLinks(Vec<String>);

impl<'de> Deserialize<'de> for FirstLinks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(LinksVisitor)
    }
}

struct LinksVisitor;

impl<'de> Visitor<'de> for LinksVisitor {
    type Value = FirstLinks;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of links")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<FirstLinks, A::Error> {
        let mut links = Vec::new();
        while links.len() < MAX_LINKS
            && let Some(link) = list.next_element()?
        {
            links.push(link);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(FirstLinks(links))
    }
}

impl LedgerLine {
    /// Creates the line of an entry.
    pub(super) fn new(digest: &Digest, entry: &LedgerEntry) -> Self {
        Self {
            digest: digest.to_string(),
            size: entry.size,
            used: entry.used,
            fetched: entry.fetched,
            links: FirstLinks(entry.link_texts().map(str::to_owned).collect()),
        }
    }

    /// Returns the entry; `None` if the digest is malformed.
    pub(super) fn entry(&self) -> Option<(Digest, LedgerEntry)> {
        let mut entry = LedgerEntry::new(self.size, self.used, self.fetched);
        for link in &self.links.0 {
            entry.add_link(link);
        }
        Some((self.digest.parse().ok()?, entry))
    }
}

/// The content of a document.
#[derive(Debug, Default)]
pub(super) struct LedgerDocument {
    /// The process that wrote it.
    pub(super) writer: String,
    /// The time of the write, in ms since 1970.
    pub(super) written: i64,
    /// The content.
    pub(super) entries: Vec<(Digest, LedgerEntry)>,
}

/// A document that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ledger is damaged, or of another version of the server")]
pub(super) struct InvalidLedger;

/// Returns the text of a shard.
pub(super) fn encode(table: &ShardTable, writer: &str, written: i64) -> Vec<u8> {
    let mut lines = Vec::new();
    for (digest, entry) in table.iter() {
        // A line of numbers and texts has no value that JSON lacks.
        let _ = serde_json::to_writer(&mut lines, &LedgerLine::new(digest, entry));
        lines.push(b'\n');
    }
    let header = Header {
        version: VERSION,
        writer: writer.to_owned(),
        written,
        digest: Digest::compute(Algorithm::Sha256, &lines).to_string(),
    };
    let mut text = serde_json::to_vec(&header).unwrap_or_default();
    text.push(b'\n');
    text.append(&mut lines);
    text
}

/// Reads the text of a shard; content of other shards is left out.
///
/// # Errors
/// It is damaged, or of another version.
pub(super) fn decode(text: &[u8], shard: u8) -> Result<LedgerDocument, InvalidLedger> {
    let split = text.iter().position(|b| *b == b'\n').ok_or(InvalidLedger)?;
    let (header, lines) = (&text[..split], &text[split + 1..]);
    let header: Header = serde_json::from_slice(header).map_err(|_| InvalidLedger)?;
    let found = Digest::compute(Algorithm::Sha256, lines);
    if header.version != VERSION || header.digest != found.as_str() || header.writer.len() > 64 {
        return Err(InvalidLedger);
    }
    let lines = lines.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let entries = lines
        .map(|line| entry(line, shard))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(LedgerDocument {
        writer: header.writer,
        written: header.written,
        entries: entries.into_iter().flatten().collect(),
    })
}

fn entry(line: &[u8], shard: u8) -> Result<Option<(Digest, LedgerEntry)>, InvalidLedger> {
    let line: LedgerLine = serde_json::from_slice(line).map_err(|_| InvalidLedger)?;
    let (digest, entry) = line.entry().ok_or(InvalidLedger)?;
    let is_own = digest.hex().starts_with(&format!("{shard:02x}"));
    Ok(is_own.then_some((digest, entry)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    fn table() -> ShardTable {
        let mut table = ShardTable::default();
        for (number, hex) in (0..20).zip(["ab", "cd"].iter().cycle()) {
            let digest = format!("sha256:{hex}{number:062x}").parse().unwrap();
            let mut entry = LedgerEntry::new(number, 5, 7);
            entry.add_link("0 docker.io/library/app");
            table.merge(digest, entry);
        }
        table
    }

    /// A document reads back with its writer, its time and the content of its shard alone.
    #[test]
    fn document_reads_back() {
        let table = table();
        let text = encode(&table, "me", 42);
        let read = decode(&text, 0xab).unwrap();
        assert_eq!(
            (read.writer.as_str(), read.written, read.entries.len()),
            ("me", 42, 10)
        );
        for (digest, entry) in &read.entries {
            assert_eq!(table.get(digest), Some(entry));
        }
    }

    /// A field that this version does not know changes nothing.
    #[test]
    fn unknown_field_is_ignored() {
        let hex = "a".repeat(64);
        let line = format!(
            "{{\"digest\":\"sha256:{hex}\",\"size\":1,\"used\":2,\"fetched\":3,\"later\":{{\"x\":[1]}}}}\n"
        );
        let digest = Digest::compute(Algorithm::Sha256, line.as_bytes());
        let header = format!(
            "{{\"version\":1,\"writer\":\"w\",\"written\":1,\"digest\":\"{digest}\",\"later\":true}}\n"
        );
        let read = decode((header + &line).as_bytes(), 0xaa).unwrap();
        assert_eq!(read.entries[0].1, LedgerEntry::new(1, 2, 3));
    }

    /// Returns a document with the right hash that repeats a line up to 3 MiB, at least once.
    fn document(line: &str) -> Vec<u8> {
        let lines = format!("{line}\n").repeat(((3 << 20) / (line.len() + 1)).max(1));
        let digest = Digest::compute(Algorithm::Sha256, lines.as_bytes());
        let header = format!("{{\"version\":1,\"writer\":\"w\",\"written\":1,\"digest\":\"{digest}\"}}\n");
        (header + &lines).into_bytes()
    }

    /// Returns a line with one more field.
    fn line(field: &str) -> String {
        let hex = "a".repeat(64);
        format!("{{\"digest\":\"sha256:{hex}\",\"size\":1,\"used\":2,\"fetched\":3,{field}}}")
    }

    fn deep(levels: usize) -> String {
        format!("{}{}", "[".repeat(levels), "]".repeat(levels))
    }

    /// A document of a hostile bucket, with the right hash, takes little memory, whatever is nested or repeated in it.
    #[test_case(&line(&format!("\"later\":{}", deep(1_500_000))) => true; "a deep field")]
    #[test_case(&line(&format!("\"links\":{}", deep(1_500_000))) => false; "deep links")]
    #[test_case(&line(&format!("\"later\":[{}[]]", "[[[[]]]],".repeat(300_000))) => true; "a wide field")]
    #[test_case(&line(&format!("\"links\":[{}\"\"]", "\"\",".repeat(1_000_000))) => true; "a million links")]
    #[test_case(&line(&format!("\"later\":\"{}\"", "\\u0061".repeat(500_000))) => true; "a long text")]
    #[test_case(&line("\"links\":[]") => true; "many lines")]
    #[test_case(&line(&format!("\"links\":[{}\"\"]", "\"\",".repeat(63))) => true; "many lines with links")]
    fn hostile_document_takes_little_memory(line: &str) -> bool {
        let text = document(line);
        assert!(text.len() < MAX_LEDGER, "{}", text.len());
        let mut is_valid = false;
        let counted = allocation_counter::measure(|| is_valid = decode(&text, 0xaa).is_ok());
        assert!(counted.bytes_max < 16 << 20, "{} bytes", counted.bytes_max);
        is_valid
    }

    /// Links beyond the limit are read past.
    #[test]
    fn links_beyond_the_limit_are_ignored() {
        let links: Vec<_> = (0..2 * MAX_LINKS).map(|number| format!("\"{number}\"")).collect();
        let text = line(&format!("\"links\":[{}]", links.join(",")));
        let line: LedgerLine = serde_json::from_str(&text).unwrap();
        assert_eq!(line.links.0.len(), MAX_LINKS);
        assert_eq!(line.links.0[0], "0");
    }

    /// A document with a changed, a missing or an additional byte is damaged.
    #[test]
    fn changed_document_is_damaged() {
        let text = encode(&table(), "me", 42);
        for at in (0..text.len()).step_by(7) {
            let mut changed = text.clone();
            changed[at] ^= 4;
            // A change of the writer's name or the time in the header is none of the content.
            if let Ok(read) = decode(&changed, 0xab) {
                assert!(at < 80 && read.entries.len() == 10, "{at}");
            }
        }
        assert_eq!(decode(&text[..text.len() - 1], 0xab).unwrap_err(), InvalidLedger);
        assert_eq!(decode(b"", 0xab).unwrap_err(), InvalidLedger);
    }

    proptest! {
        #[test]
        fn any_ledger_is_read_without_panic(text: Vec<u8>, shard: u8) {
            let _ = decode(&text, shard);
        }
    }
}
