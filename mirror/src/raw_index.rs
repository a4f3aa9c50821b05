//! An index of manifests in its own text (image-spec, "Image Index"), joined from pages and filtered without a tree of
//! its values: what the server does not know passes as the registry wrote it.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::json::{self, MAX_ENTRIES, Object, Scalar};

/// The most members of an index; the specification has seven.
const MAX_MEMBERS: usize = 100;

/// The parts of an index.
#[derive(Debug, Default)]
pub(crate) struct RawIndex<'a> {
    /// All members but `manifests`.
    members: Vec<(String, &'a RawValue)>,
    manifests: RawList<'a>,
}

/// The list of an index.
#[derive(Debug, Default)]
enum RawList<'a> {
    /// `null`, or no such member.
    #[default]
    Absent,
    Entries {
        descriptors: Vec<&'a RawValue>,
        /// Entries that are no objects were left out.
        has_others: bool,
    },
    /// More than [`MAX_ENTRIES`].
    TooMany,
    /// A value of another type.
    Other,
}

/// The reason for which a document is no list of manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IndexError {
    #[error("no JSON object")]
    NoObject,
    #[error("broken JSON, or an object of more than {MAX_MEMBERS} members")]
    Broken,
    #[error("another object than an index")]
    NoIndex,
    #[error("an index whose manifests are no list")]
    NoList,
    #[error("an index of more than {MAX_ENTRIES} descriptors")]
    TooMany,
    #[error("an index of more than {0} bytes")]
    TooLarge(usize),
}

impl<'a> RawIndex<'a> {
    /// Reads an index. One without `manifests` is an empty list; entries that are no objects are left out.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, IndexError> {
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(IndexError::NoObject);
        }
        let index: Self = serde_json::from_slice(bytes).map_err(|_| IndexError::Broken)?;
        match index.manifests {
            RawList::Entries { .. } => Ok(index),
            RawList::Absent if index.is_typed() => Ok(index),
            RawList::Absent => Err(IndexError::NoIndex),
            RawList::TooMany => Err(IndexError::TooMany),
            RawList::Other => Err(IndexError::NoList),
        }
    }

    /// Returns true if an object without manifests is an index all the same, by its type or else by its version.
    fn is_typed(&self) -> bool {
        let member = |name: &str| self.members.iter().rfind(|(known, _)| known == name);
        let media_type = member("mediaType").map(|(_, value)| json::read(value.get().as_bytes()));
        match media_type {
            Some(Some(Scalar::Text(text))) => text.contains("index") || text.contains("manifest.list"),
            _ => member("schemaVersion").is_some(),
        }
    }

    fn descriptors(&self) -> &[&'a RawValue] {
        match &self.manifests {
            RawList::Entries { descriptors, .. } => descriptors,
            _ => &[],
        }
    }

    /// Returns true if the text of the index can be passed on as it is.
    fn is_clean(&self) -> bool {
        matches!(
            self.manifests,
            RawList::Entries {
                has_others: false,
                ..
            }
        )
    }
}

/// An index that is joined from pages, or from some descriptors of another one.
#[derive(Debug, Default)]
pub(crate) struct ReferrerIndex {
    /// The first page, where it can be passed on as it is.
    whole: Option<Bytes>,
    pages: usize,
    /// The members of the first page but `manifests`, each with a comma.
    members: String,
    /// The descriptors, with commas between them.
    list: String,
    count: usize,
}

impl ReferrerIndex {
    /// Adds a page to an index of at most `limit` bytes.
    pub(crate) fn add(&mut self, page: &Bytes, limit: usize) -> Result<(), IndexError> {
        let text = json::without_lone_surrogates(page);
        let index = RawIndex::read(&text)?;
        self.pages += 1;
        self.whole = (self.pages == 1 && index.is_clean()).then(|| page.clone());
        if self.pages == 1 {
            self.add_members(&index);
        }
        for descriptor in index.descriptors() {
            self.push(descriptor, limit)?;
        }
        Ok(())
    }

    fn add_members(&mut self, index: &RawIndex<'_>) {
        for (name, value) in &index.members {
            // Never fails for a string.
            let name = serde_json::to_string(name).unwrap_or_default();
            self.members.extend([&name, ":", value.get(), ","]);
        }
    }

    fn push(&mut self, descriptor: &RawValue, limit: usize) -> Result<(), IndexError> {
        let text = descriptor.get();
        if self.count == MAX_ENTRIES {
            return Err(IndexError::TooMany);
        }
        if self.len() + text.len() > limit {
            return Err(IndexError::TooLarge(limit));
        }
        if self.count > 0 {
            self.list.push(',');
        }
        self.list.push_str(text);
        self.count += 1;
        Ok(())
    }

    /// Returns its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.members.len() + self.list.len() + r#"{"manifests":[],}"#.len()
    }

    /// Returns the index.
    pub(crate) fn into_bytes(self) -> Bytes {
        let Self { members, list, .. } = self;
        let joined = || format!("{{{members}\"manifests\":[{list}]}}").into();
        self.whole.unwrap_or_else(joined)
    }
}

/// Returns the index with the manifests of one artifact type only; `None` where it is no index.
pub(crate) fn with_artifact_type(index: &[u8], artifact_type: &str) -> Option<Bytes> {
    let text = json::without_lone_surrogates(index);
    let index = RawIndex::read(&text).ok()?;
    let mut filtered = ReferrerIndex::default();
    filtered.add_members(&index);
    for descriptor in index.descriptors() {
        let fields: Object<ArtifactType> = json::read(descriptor.get().as_bytes())?;
        let is_wanted = |fields: ArtifactType| fields.artifact_type == Scalar::Text(artifact_type.to_owned());
        if fields.0.is_some_and(is_wanted) {
            filtered.push(descriptor, usize::MAX).ok()?;
        }
    }
    Some(filtered.into_bytes())
}

json::members! {
    /// The part of a descriptor by which referrers are filtered.
    ArtifactType {
        "artifacttype" => artifact_type: Scalar,
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for RawIndex<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = RawIndex<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<RawIndex<'de>, A::Error> {
                let mut index = RawIndex::default();
                while let Some(name) = object.next_key::<String>()? {
                    if !name.eq_ignore_ascii_case("manifests") {
                        index.members.push((name, object.next_value()?));
                    } else if let list @ (RawList::Entries { .. } | RawList::TooMany | RawList::Other) =
                        object.next_value()?
                    {
                        index.manifests = list;
                    }
                    if index.members.len() > MAX_MEMBERS {
                        return Err(A::Error::custom("too many members"));
                    }
                }
                Ok(index)
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for RawList<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawListReader)
    }
}

struct RawListReader;

impl<'de> Visitor<'de> for RawListReader {
    type Value = RawList<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<RawList<'de>, E> {
        Ok(RawList::Absent)
    }

    fn visit_bool<E>(self, _: bool) -> Result<RawList<'de>, E> {
        Ok(RawList::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<RawList<'de>, E> {
        Ok(RawList::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<RawList<'de>, E> {
        Ok(RawList::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<RawList<'de>, E> {
        Ok(RawList::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<RawList<'de>, E> {
        Ok(RawList::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<RawList<'de>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(RawList::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawList<'de>, A::Error> {
        let (mut descriptors, mut has_others) = (Vec::new(), false);
        while let Some(entry) = list.next_element::<&'de RawValue>()? {
            if !entry.get().starts_with('{') {
                has_others = true;
            } else if descriptors.len() < MAX_ENTRIES {
                descriptors.push(entry);
            } else {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(RawList::TooMany);
            }
        }
        Ok(RawList::Entries {
            descriptors,
            has_others,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use test_case::test_case;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const LIMIT: usize = 4 << 20;

    fn joined(pages: &[&str]) -> Result<String, IndexError> {
        let mut joined = ReferrerIndex::default();
        for page in pages {
            joined.add(&Bytes::copy_from_slice(page.as_bytes()), LIMIT)?;
        }
        Ok(String::from_utf8(joined.into_bytes().to_vec()).unwrap())
    }

    fn parsed(pages: &[&str]) -> Value {
        serde_json::from_str(&joined(pages).unwrap()).unwrap()
    }

    #[test]
    fn pages_are_joined_and_nothing_else_changed() {
        let one = r#"{"schemaVersion":2,"x\"y":{"a":[1.50]},"manifests":[{"digest":"a"},{"digest":"c"}]}"#;
        let other = r#"{"schemaVersion":3,"manifests":[ {"digest":"b"} ]}"#;
        let wanted = r#"{"schemaVersion":2,"x\"y":{"a":[1.50]},"manifests":[{"digest":"a"},{"digest":"c"},{"digest":"b"}]}"#;
        assert_eq!(joined(&[one, other]).unwrap(), wanted);
        assert_eq!(joined(&[one, "{}"]), Err(IndexError::NoIndex));
    }

    #[test]
    fn a_clean_index_comes_as_it_was_sent() {
        let sent = r#"{ "Manifests": [ {"digest":"a"} ] , "x":1 }"#;
        assert_eq!(joined(&[sent]).unwrap(), sent);
        let odd = r#"{"x":1,"manifests":[{"digest":"a"},null,1,["b"],"c",{}]}"#;
        assert_eq!(
            joined(&[odd]).unwrap(),
            r#"{"x":1,"manifests":[{"digest":"a"},{}]}"#
        );
    }

    /// Half of a surrogate pair hides no descriptor, with and without a filter.
    #[test]
    fn half_of_surrogate_pair_hides_no_descriptor() {
        let sent = r#"{"\ud800":1,"manifests":[{"a\udc00":"\ud800","artifactType":"b"}]}"#;
        assert_eq!(joined(&[sent]).unwrap(), sent);
        let filtered = with_artifact_type(sent.as_bytes(), "b").unwrap();
        let filtered: Value = serde_json::from_slice(&filtered).unwrap();
        assert_eq!(filtered["manifests"][0]["artifactType"], "b");
    }

    /// An index without manifests is an empty list.
    #[test]
    fn index_without_manifests_is_empty() {
        for manifests in [
            "",
            r#","manifests":null"#,
            r#","manifests":[]"#,
            r#","manifests":[null,1]"#,
        ] {
            for own in [
                r#""schemaVersion":2"#.to_owned(),
                format!(r#""mediaType":"{INDEX}""#),
            ] {
                let read = parsed(&[&format!("{{{own}{manifests}}}")]);
                assert_eq!(read["manifests"], json!([]), "{own}{manifests}");
            }
        }
    }

    #[test_case("<html>" => IndexError::NoObject; "a page")]
    #[test_case("" => IndexError::NoObject; "nothing")]
    #[test_case("[]" => IndexError::NoObject; "a list")]
    #[test_case("{}" => IndexError::NoIndex; "an empty object")]
    #[test_case(r#"{"message":"ok"}"# => IndexError::NoIndex; "other JSON")]
    #[test_case(r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}"# => IndexError::NoIndex; "an image")]
    #[test_case(r#"{"manifests":[{"digest":"a"}"# => IndexError::Broken; "cut")]
    #[test_case(r#"{"manifests":[{"digest":"a"}]} x"# => IndexError::Broken; "more after it")]
    #[test_case(r#"{"manifests":{"a":[1]}}"# => IndexError::NoList; "an object")]
    #[test_case(r#"{"manifests":"x"}"# => IndexError::NoList; "text")]
    fn other_documents_are_no_index(text: &str) -> IndexError {
        joined(&[text]).unwrap_err()
    }

    #[test]
    fn members_descriptors_and_bytes_are_bounded() {
        let index = |count: usize| format!(r#"{{"manifests":[{}{{}}]}}"#, "{},".repeat(count - 1));
        assert!(joined(&[&index(MAX_ENTRIES)]).is_ok());
        assert_eq!(joined(&[&index(MAX_ENTRIES + 1)]), Err(IndexError::TooMany));
        let half = index(MAX_ENTRIES / 2 + 1);
        assert_eq!(joined(&[&half, &half]), Err(IndexError::TooMany));
        let large = format!(r#"{{"manifests":[{{"x":"{}"}}]}}"#, "x".repeat(3 << 20));
        assert_eq!(joined(&[&large, &large]), Err(IndexError::TooLarge(LIMIT)));
        let members = format!(r#"{{{}"manifests":[]}}"#, r#""a":1,"#.repeat(MAX_MEMBERS + 1));
        assert_eq!(joined(&[&members]), Err(IndexError::Broken));
        // Entries that are dropped take no memory, however many there are.
        assert!(joined(&[&format!(r#"{{"manifests":[{}1]}}"#, "1,".repeat(50_000))]).is_ok());
    }

    #[test]
    fn only_manifests_of_the_type_remain() {
        let index = r#"{"schemaVersion":2,"manifests":[{"digest":"a","artifactType":"x"},{"digest":"b","artifactType":"y"},{"digest":"c"},{"artifactType":["y"]}]}"#;
        let filtered = with_artifact_type(index.as_bytes(), "y").unwrap();
        let wanted = r#"{"schemaVersion":2,"manifests":[{"digest":"b","artifactType":"y"}]}"#;
        assert_eq!(filtered, wanted);
        assert_eq!(with_artifact_type(b"[]", "y"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, text in "\\{[\\[\\]{}\",:a-z0-9.-]{0,60}") {
            let _ = (RawIndex::read(&bytes).is_ok(), joined(&[&text, &text]));
        }
    }
}
