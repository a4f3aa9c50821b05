//! JSON of registries, read as Go's `encoding/json` reads it: most registries and all common clients use that.
//!
//! The names of members match in any letter case. The last of two members with one name counts. `null` is absence. A
//! value of another type than expected is absent too, so an unused label never hides the other content. Half of a surrogate
//! pair is U+FFFD.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The most bytes of a document in which bytes that are not UTF-8 are replaced: each replacement takes three bytes. Of a
/// larger document only members that no reader knows may have such bytes.
const MAX_REPLACED: usize = 64 * 1024;

/// Reads a document; `None` where the bytes are not JSON, or where anything but white space follows it.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let bytes = &without_lone_surrogates(bytes);
    match text(bytes) {
        Some(text) => serde_json::from_str(&text).ok(),
        None => serde_json::from_slice(bytes).ok(),
    }
}

/// Replaces the escapes of halves of surrogate pairs by that of U+FFFD, which is as long.
pub(crate) fn without_lone_surrogates(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut replaced = Cow::Borrowed(bytes);
    let mut at = 0;
    let next = |at: usize| bytes.get(at..)?.iter().position(|byte| *byte == b'\\');
    while let Some(found) = next(at) {
        at += found;
        match utf16_unit(bytes, at) {
            Some(0xd800..=0xdbff) if matches!(utf16_unit(bytes, at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => {
                replaced.to_mut()[at + 2..at + 6].copy_from_slice(b"fffd");
                at += 6;
            }
            // Also past the second of two backslashes.
            _ => at += 2,
        }
    }
    replaced
}

/// Returns the number of an escape `\uXXXX` at a place.
fn utf16_unit(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(digit).ok()?)
    })
}

fn text(bytes: &[u8]) -> Option<Cow<'_, str>> {
    match str::from_utf8(bytes) {
        Ok(text) => Some(text.into()),
        Err(_) => (bytes.len() <= MAX_REPLACED).then(|| String::from_utf8_lossy(bytes)),
    }
}

/// Reads the document at the start of `bytes`, as Go's `Decoder` does: clients read token answers and lists with it.
pub(crate) fn read_first<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let bytes = &without_lone_surrogates(bytes);
    match text(bytes) {
        Some(text) => T::deserialize(&mut serde_json::Deserializer::from_str(&text)).ok(),
        None => T::deserialize(&mut serde_json::Deserializer::from_slice(bytes)).ok(),
    }
}

/// A value that is not a list or an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Scalar {
    /// `null`, or no such member.
    #[default]
    Absent,
    Text(String),
    Integer(u64),
    /// Any other number.
    Real(f64),
    /// A value of another type.
    Other,
}

impl Scalar {
    /// Returns the text, unless it is empty.
    pub(crate) fn text(self) -> Option<String> {
        match self {
            Self::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// Returns the number, which may be written as text. It is finite.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            // Rounded beyond 2^53, which no duration reaches.
            #[expect(clippy::cast_precision_loss, reason = "see above")]
            Self::Integer(number) => Some(*number as f64),
            Self::Real(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
            Self::Absent | Self::Other => None,
        }
    }

    /// Returns the whole number from 0 on, which may be written as `2.0` or as text.
    pub(crate) fn integer(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            // Digits only, so parsing keeps what a cast would round.
            Self::Real(number) => format!("{number:.0}")
                .parse()
                .ok()
                .filter(|_| number.fract() == 0.0),
            Self::Absent | Self::Other => None,
        }
    }
}

/// An object's members, as far as they are of use.
pub(crate) trait Members: Default {
    /// Reads the value of the member `name`, which is in lower case, or leaves it with [`skip`].
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, values: &mut A) -> Result<(), A::Error>;
}

/// Reads a member's value into its field; `null` leaves the field as it is.
pub(crate) fn assign<'de, T, A>(field: &mut T, values: &mut A) -> Result<(), A::Error>
where
    T: Value + Deserialize<'de>,
    A: MapAccess<'de>,
{
    let value: T = values.next_value()?;
    if !value.is_absent() {
        *field = value;
    }
    Ok(())
}

/// Reads past a member's value.
pub(crate) fn skip<'de, A: MapAccess<'de>>(values: &mut A) -> Result<(), A::Error> {
    values.next_value::<IgnoredAny>().map(drop)
}

/// Declares an object with the names of its members in lower case; other members are skipped.
macro_rules! members {
    ($(#[$attribute:meta])* $visibility:vis $type:ident {
        $($(#[$doc:meta])* $($name:literal)|+ => $field:ident: $kind:ty,)+
    }) => {
        $(#[$attribute])*
        #[derive(Default)]
        $visibility struct $type {
            $($(#[$doc])* $field: $kind,)+
        }

        impl $crate::json::Members for $type {
            fn read<'de, A>(&mut self, name: &str, values: &mut A) -> Result<(), A::Error>
            where
                A: serde::de::MapAccess<'de>,
            {
                match name {
                    $($($name)|+ => $crate::json::assign(&mut self.$field, values),)+
                    _ => $crate::json::skip(values),
                }
            }
        }
    };
}
pub(crate) use members;

/// An object; `None` where the value is of another type.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Object<T>(pub(crate) Option<T>);

/// An entry of a list.
pub(crate) trait ListEntry: Sized {
    /// The type that the list has it in.
    type Json: DeserializeOwned;

    /// Returns the entry, unless it is of no use.
    fn from_json(json: Self::Json) -> Option<Self>;
}

/// The most entries of a list that are kept: tags of a page, descriptors of a manifest.
pub(crate) const MAX_ENTRIES: usize = 10_000;

/// A list; entries of no use are dropped as they are read, so they take no memory, however many there are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum JsonList<T> {
    /// `null`, or no such member.
    #[default]
    Absent,
    /// At most [`MAX_ENTRIES`].
    Entries(Vec<T>),
    /// More entries than that, of which none is kept.
    TooMany,
    /// A value of another type.
    Other,
}

impl<T> JsonList<T> {
    /// Returns the entries; none where the value is not a list.
    pub(crate) fn entries(self) -> Vec<T> {
        match self {
            Self::Entries(entries) => entries,
            Self::Absent | Self::TooMany | Self::Other => Vec::new(),
        }
    }

    /// Returns true for more than [`MAX_ENTRIES`].
    pub(crate) fn is_too_long(&self) -> bool {
        matches!(self, Self::TooMany)
    }
}

/// A type that every JSON value can be read as.
pub(crate) trait Value: Sized {
    /// Takes a value that is not a list or an object.
    fn scalar(scalar: Scalar) -> Self;

    /// Tells `null`.
    fn is_absent(&self) -> bool;

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::scalar(Scalar::Other))
    }

    fn object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::scalar(Scalar::Other))
    }
}

impl Value for Scalar {
    fn scalar(scalar: Scalar) -> Self {
        scalar
    }

    fn is_absent(&self) -> bool {
        *self == Self::Absent
    }
}

impl<T: Members> Value for Object<T> {
    fn scalar(_: Scalar) -> Self {
        Self(None)
    }

    fn is_absent(&self) -> bool {
        self.0.is_none()
    }

    fn object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        let mut members = T::default();
        while let Some(name) = object.next_key::<Name>()? {
            members.read(name.as_str(), &mut object)?;
        }
        Ok(Self(Some(members)))
    }
}

impl<T: ListEntry> Value for JsonList<T> {
    fn scalar(scalar: Scalar) -> Self {
        match scalar {
            Scalar::Absent => Self::Absent,
            _ => Self::Other,
        }
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut entries = Vec::new();
        while let Some(json) = list.next_element()? {
            entries.extend(T::from_json(json));
            if entries.len() > MAX_ENTRIES {
                drop(entries);
                while list.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(Self::TooMany);
            }
        }
        Ok(Self::Entries(entries))
    }
}

/// The longest name that any reader knows.
const LONGEST_NAME: usize = 20;

/// A member's name in lower case, on the stack; empty where it is longer than any name that a reader knows.
struct Name {
    bytes: [u8; LONGEST_NAME],
    length: usize,
}

impl Name {
    fn new(name: &str) -> Self {
        let (mut bytes, mut length) = ([0; LONGEST_NAME], 0);
        if let Some(place) = bytes.get_mut(..name.len()) {
            place.copy_from_slice(name.as_bytes());
            place.make_ascii_lowercase();
            length = name.len();
        }
        Self { bytes, length }
    }

    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
                Ok(Name::new(name))
            }
        }

        deserializer.deserialize_str(Reader)
    }
}

struct Reader<T>(PhantomData<T>);

impl<'de, T: Value> Visitor<'de> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<T, E> {
        Ok(T::scalar(Scalar::Other))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        Ok(T::scalar(Scalar::Integer(number)))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        #[expect(clippy::cast_precision_loss, reason = "negative: only its sign is of use")]
        Ok(T::scalar(Scalar::Real(number as f64)))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        Ok(T::scalar(Scalar::Real(number)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Ok(T::scalar(Scalar::Text(text.to_owned())))
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(T::scalar(Scalar::Absent))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<T, A::Error> {
        T::object(object)
    }
}

/// Any value can be read as such a type, so its deserializer asks for any.
macro_rules! read_from_any {
    ($($type:ty $(, $parameter:ident: $bound:ident)?;)+) => {
        $(impl<'de $(, $parameter: $bound)?> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Reader(PhantomData))
            }
        })+
    };
}

read_from_any! {
    Scalar;
    Object<T>, T: Members;
    JsonList<T>, T: ListEntry;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    members! {
        #[derive(Debug, PartialEq)]
        Sample {
            "name" => name: Scalar,
            "words" => words: JsonList<String>,
        }
    }

    impl ListEntry for String {
        type Json = Scalar;

        fn from_json(json: Scalar) -> Option<Self> {
            json.text()
        }
    }

    fn sample(text: &str) -> Option<Sample> {
        read::<Object<Sample>>(text.as_bytes())?.0
    }

    /// A member of an object is found as Go finds it: in any letter case, and the last of several.
    #[test_case(r#"{"name":"a"}"#, Some("a"))]
    #[test_case(r#"{"NAME":"a"}"#, Some("a"); "letter case")]
    #[test_case(r#"{"name":"a","name":"b"}"#, Some("b"); "the last of two")]
    #[test_case(r#"{"name":"a","Name":null}"#, Some("a"); "null sets nothing")]
    #[test_case(r#"{"name":[{"a":[1]}],"other":{"name":"c"}}"#, None; "another type")]
    #[test_case(r#"{"name":""}"#, None; "no text")]
    #[test_case(r#"{"namename name name name":1,"n\u0061me":"a"}"#, Some("a"); "an escape")]
    fn json_member_is_read_as_in_go(text: &str, expected: Option<&str>) {
        assert_eq!(sample(text).unwrap().name.text().as_deref(), expected);
    }

    /// Entries that are not usable are dropped.
    #[test]
    fn unusable_entries_are_dropped() {
        let words = sample(r#"{"words":["a",null,1,"",["b"],{"c":"d"},"e"]}"#)
            .unwrap()
            .words;
        assert_eq!(words.entries(), ["a", "e"]);
        assert_eq!(sample(r#"{"words":{}}"#).unwrap().words, JsonList::Other);
        assert_eq!(sample(r#"{"words":null}"#).unwrap().words, JsonList::Absent);
    }

    #[test]
    fn list_of_too_many_entries_is_dropped() {
        let list = |count: usize| format!(r#"{{"words":[{}1],"name":"a"}}"#, r#""x","#.repeat(count));
        let entries = sample(&list(MAX_ENTRIES)).unwrap().words.entries();
        assert_eq!(entries.len(), MAX_ENTRIES);
        let read = sample(&list(MAX_ENTRIES + 5)).unwrap();
        assert!(read.words.is_too_long() && read.words.entries().is_empty());
        assert_eq!(read.name.text().as_deref(), Some("a"));
    }

    #[test_case("2", Some(2))]
    #[test_case("2.0", Some(2); "with a fraction of zero")]
    #[test_case("\"2\"", Some(2); "as text")]
    #[test_case("2.5", None; "a fraction")]
    #[test_case("-2", None; "negative")]
    #[test_case("-0.0", None; "a negative zero")]
    #[test_case("1e300", None; "huge")]
    #[test_case("true", None; "another type")]
    fn whole_numbers(text: &str, expected: Option<u64>) {
        assert_eq!(read::<Scalar>(text.as_bytes()).unwrap().integer(), expected);
    }

    /// Text that is not UTF-8 is read with replacement characters.
    #[test]
    fn non_utf8_text_is_replaced() {
        let value: Scalar = read(b"\"nicht verf\xfcgbar\"").unwrap();
        assert_eq!(value.text().as_deref(), Some("nicht verf\u{fffd}gbar"));
    }

    /// Half of a surrogate pair is U+FFFD, and pairs and escaped backslashes stay.
    #[test_case(r"\ud800", "\u{fffd}"; "a high half")]
    #[test_case(r"\uDFFFa", "\u{fffd}a"; "a low half")]
    #[test_case(r"\ud83d\ude00", "\u{1f600}"; "a pair")]
    #[test_case(r"\ud83d\ud83d\ude00", "\u{fffd}\u{1f600}"; "a half in front of a pair")]
    #[test_case(r"\ud800\u0041", "\u{fffd}A"; "a half in front of a letter")]
    #[test_case(r"\\ud800", r"\ud800"; "no escape")]
    fn half_of_surrogate_pair_is_replaced(text: &str, expected: &str) {
        let value: Scalar = read(format!("\"{text}\"").as_bytes()).unwrap();
        assert_eq!(value.text().as_deref(), Some(expected));
    }

    /// Replacing would take three times the memory.
    #[test]
    fn large_invalid_utf_8_is_read_in_unknown_members() {
        let sample = |member: &str| {
            let end = format!("\"],\"{member}\":\"");
            let mut document = br#"{"other":[""#.to_vec();
            document.resize(document.len() + MAX_REPLACED, 0xff);
            document.extend([end.as_bytes(), b"\xff\"}"].concat());
            (
                read::<Object<Sample>>(&document),
                read_first::<Object<Sample>>(&document),
            )
        };
        assert!(matches!(sample("else"), (Some(_), Some(_))));
        assert_eq!(sample("name"), (None, None));
    }

    /// From a stream the reader takes the first document only; a single document allows nothing after it.
    #[test]
    fn json_stream_reads_first_document_only() {
        assert_eq!(read_first::<Scalar>(b"1 {} x").unwrap(), Scalar::Integer(1));
        assert_eq!(read::<Scalar>(b"1 {} x"), None);
        assert_eq!(read_first::<Scalar>(b""), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, text in "\\{[\\[\\]{}\",:a-z0-9.-]{0,60}") {
            let _ = (read::<Object<Sample>>(&bytes), read_first::<Object<Sample>>(text.as_bytes()));
        }
    }
}
