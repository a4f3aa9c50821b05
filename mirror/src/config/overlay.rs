//! Values put over a configuration by path, as Distribution's parser does it with the environment.
//!
//! `REGISTRY_HTTP_DEBUG_ADDR=:5001` is the path `HTTP`, `DEBUG`, `ADDR` and the YAML `:5001`. Paths follow
//! Distribution's field names, which are the YAML keys in upper case with few exceptions; lists go by index.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};

use super::error::reason;

const NO_VALUE: &str = "a value is missing";

/// Why a value could not be put where its path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OverlayError {
    /// The path leads nowhere.
    Unknown,
    /// The value or an index does not fit; never tells the value.
    Invalid(String),
}

/// A key of the file, as its type and its comment describe it.
#[derive(Clone, Debug)]
pub(crate) struct FileKey {
    /// Its path: `proxy.upstreams[].host`, `log.fields.NAME`.
    pub(crate) path: String,
    /// Its variable, with 0 for an index: `REGISTRY_PROXY_UPSTREAMS_0_HOST`.
    pub(crate) variable: String,
    /// The comment.
    pub(crate) meaning: &'static str,
    /// The values that it takes; empty where anything goes, as the key has no effect or is refused.
    pub(crate) values: &'static str,
}

impl FileKey {
    /// Returns the empty file.
    pub(crate) fn root() -> Self {
        Self {
            path: String::new(),
            variable: "REGISTRY".to_owned(),
            meaning: "",
            values: "",
        }
    }

    /// Returns a key below this one.
    pub(crate) fn below(&self, key: &str, own: &[&str], meaning: &'static str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        let variable = own
            .first()
            .map_or_else(|| key.to_ascii_uppercase(), |own| (*own).to_owned());
        Self {
            path: format!("{}{dot}{key}", self.path),
            variable: format!("{}_{variable}", self.variable),
            meaning: meaning.trim_start(),
            values: "",
        }
    }

    /// Returns the key of each element of a list or a map.
    fn element(&self, path: &str, variable: &str) -> Self {
        Self {
            path: format!("{}{path}", self.path),
            variable: format!("{}_{variable}", self.variable),
            ..self.clone()
        }
    }
}

/// A part of the configuration that values can be put over.
pub(crate) trait Overlay: DeserializeOwned {
    /// The values that the part takes, in words; empty for what has keys below it.
    const VALUES: &'static str = "";

    /// Returns the value that YAML's null stands for; `None`: it has no meaning for this key.
    fn null() -> Option<Self> {
        None
    }

    /// Returns a new value to descend into; `None` for a value without keys.
    fn fresh() -> Option<Self> {
        None
    }

    /// Puts the value below this part; `path` is not empty.
    ///
    /// # Errors
    /// The path leads nowhere, or the value does not fit.
    fn descend(&mut self, _head: &str, _rest: &[&str], _yaml: &str) -> Result<(), OverlayError> {
        Err(OverlayError::Unknown)
    }

    /// Adds all keys from this one on.
    fn keys(at: &FileKey, keys: &mut Vec<FileKey>) {
        keys.push(FileKey {
            values: Self::VALUES,
            ..at.clone()
        });
    }

    /// Adds the paths of the keys from this one on that have a value.
    fn set_keys(&self, path: &str, keys: &mut Vec<String>) {
        keys.push(path.to_owned());
    }

    /// Puts the value where the path leads: here, if it is empty.
    ///
    /// # Errors
    /// The path leads nowhere, or the value does not fit.
    fn overlay(&mut self, path: &[&str], yaml: &str) -> Result<(), OverlayError> {
        match path.split_first() {
            None => *self = read(yaml)?,
            Some((head, rest)) => self.descend(head, rest, yaml)?,
        }
        Ok(())
    }
}

fn read<T: Overlay>(yaml: &str) -> Result<T, OverlayError> {
    let value: Option<T> = serde_saphyr::from_str(yaml).map_err(|e| OverlayError::Invalid(reason(&e)))?;
    value
        .or_else(T::null)
        .ok_or_else(|| OverlayError::Invalid(NO_VALUE.to_owned()))
}

fn make<T: Overlay>(path: &[&str], yaml: &str) -> Result<T, OverlayError> {
    let Some((head, rest)) = path.split_first() else {
        return read(yaml);
    };
    let mut new = T::fresh().ok_or(OverlayError::Unknown)?;
    new.descend(head, rest, yaml)?;
    Ok(new)
}

/// Reads a key's value; null is what its type says it means.
///
/// # Errors
/// The deserializer's.
pub(crate) fn or_null<'de, D: Deserializer<'de>, T: Overlay>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer)?
        .or_else(T::null)
        .ok_or_else(|| D::Error::custom(NO_VALUE))
}

impl<T: Overlay> Overlay for Option<T> {
    fn keys(at: &FileKey, keys: &mut Vec<FileKey>) {
        T::keys(at, keys);
    }

    fn set_keys(&self, path: &str, keys: &mut Vec<String>) {
        if let Some(there) = self {
            there.set_keys(path, keys);
        }
    }

    fn null() -> Option<Self> {
        Some(None)
    }

    fn descend(&mut self, head: &str, rest: &[&str], yaml: &str) -> Result<(), OverlayError> {
        if let Some(there) = self {
            return there.descend(head, rest, yaml);
        }
        let mut new = T::fresh().ok_or(OverlayError::Unknown)?;
        new.descend(head, rest, yaml)?;
        *self = Some(new);
        Ok(())
    }
}

impl<T: Overlay> Overlay for Vec<T> {
    fn keys(at: &FileKey, keys: &mut Vec<FileKey>) {
        T::keys(&at.element("[]", "0"), keys);
    }

    fn set_keys(&self, path: &str, keys: &mut Vec<String>) {
        let path = format!("{path}[]");
        for element in self {
            element.set_keys(&path, keys);
        }
    }

    fn null() -> Option<Self> {
        Some(Self::new())
    }

    fn fresh() -> Option<Self> {
        Some(Self::new())
    }

    fn descend(&mut self, head: &str, rest: &[&str], yaml: &str) -> Result<(), OverlayError> {
        let index: usize = head
            .parse()
            .map_err(|_| OverlayError::Invalid(format!("{head} is not the index of a list")))?;
        let length = self.len();
        match self.get_mut(index) {
            Some(there) => there.overlay(rest, yaml),
            None if index == length => {
                self.push(make(rest, yaml)?);
                Ok(())
            }
            None => Err(OverlayError::Invalid(format!(
                "there is no element {index}: the next new one would be {length}"
            ))),
        }
    }
}

impl<T: Overlay> Overlay for BTreeMap<String, T> {
    fn keys(at: &FileKey, keys: &mut Vec<FileKey>) {
        T::keys(&at.element(".NAME", "NAME"), keys);
    }

    fn set_keys(&self, path: &str, keys: &mut Vec<String>) {
        let path = format!("{path}.NAME");
        for value in self.values() {
            value.set_keys(&path, keys);
        }
    }

    fn null() -> Option<Self> {
        Some(Self::new())
    }

    fn fresh() -> Option<Self> {
        Some(Self::new())
    }

    fn descend(&mut self, head: &str, rest: &[&str], yaml: &str) -> Result<(), OverlayError> {
        if let Some((_, there)) = self.iter_mut().find(|(key, _)| key.eq_ignore_ascii_case(head)) {
            return there.overlay(rest, yaml);
        }
        self.insert(head.to_lowercase(), make(rest, yaml)?);
        Ok(())
    }
}

macro_rules! leaf {
    ($($type:ty: $values:literal),+) => {
        $(impl Overlay for $type {
            const VALUES: &'static str = $values;

            fn null() -> Option<Self> {
                Some(Self::default())
            }
        })+
    };
}

leaf!(
    bool: "true or false",
    u16: "a number",
    u32: "a number",
    u64: "a number",
    String: "text",
    serde_json::Value: "text, a number, true or false"
);

/// Declares a section of the file: its keys with their meaning, their names in the environment where those are not
/// the keys in upper case, and their types. The comments of the keys are what `mirror check --explain` prints.
macro_rules! section {
    ($(#[$attribute:meta])* $name:ident {
        $($(#[doc = $doc:literal])* $key:literal $(($env:literal))? => $field:ident: $type:ty,)+
    }) => {
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        $(#[$attribute])*
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $doc])*
                #[serde(
                    rename = $key,
                    default,
                    deserialize_with = "crate::config::overlay::or_null",
                    skip_serializing_if = "crate::config::overlay::is_default"
                )]
                pub $field: $type,
            )+
        }

        impl crate::config::overlay::Overlay for $name {
            fn keys(at: &crate::config::overlay::FileKey, keys: &mut Vec<crate::config::overlay::FileKey>) {
                $(
                    let key = at.below($key, &[$($env)?], concat!($($doc),*));
                    <$type as crate::config::overlay::Overlay>::keys(&key, keys);
                )+
            }

            fn set_keys(&self, path: &str, keys: &mut Vec<String>) {
                let dot = if path.is_empty() { "" } else { "." };
                $(if !crate::config::overlay::is_default(&self.$field) {
                    self.$field.set_keys(&format!("{path}{dot}{}", $key), keys);
                })+
            }

            fn null() -> Option<Self> {
                Some(Self::default())
            }

            fn fresh() -> Option<Self> {
                Some(Self::default())
            }

            fn descend(
                &mut self,
                head: &str,
                rest: &[&str],
                yaml: &str,
            ) -> Result<(), crate::config::overlay::OverlayError> {
                $(if crate::config::overlay::names(head, $key, &[$($env)?]) {
                    return self.$field.overlay(rest, yaml);
                })+
                Err(crate::config::overlay::OverlayError::Unknown)
            }
        }
    };
}
pub(super) use section;

/// Returns `true` if `head` is the key in upper case, or one of its own names in the environment.
pub(super) fn names(head: &str, key: &str, own: &[&str]) -> bool {
    match own.first() {
        Some(own) => head == *own,
        None => head == key.to_ascii_uppercase(),
    }
}

/// Returns `true` if a field has its default value.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    section! {
        /// A section.
        #[expect(unreachable_pub, reason = "real sections are public")]
        Part {
            /// A list of sections.
            "parts" => parts: Vec<Part>,
            /// A map.
            "file" ("FILECHECKERS") => files: BTreeMap<String, u32>,
            /// A leaf.
            "word" => word: Option<String>,
        }
    }

    fn put(variables: &[(&str, &str)]) -> Result<Part, OverlayError> {
        let mut part = Part::default();
        for (path, yaml) in variables {
            part.overlay(&path.split('_').collect::<Vec<_>>(), yaml)?;
        }
        Ok(part)
    }

    /// The overlay sets each value at the place that its path names.
    #[test]
    fn overlay_values_follow_their_path() {
        let part = put(&[
            ("PARTS_0_WORD", "a"),
            ("PARTS_1_PARTS_0_WORD", "b"),
            ("FILECHECKERS_X", "7"),
        ])
        .unwrap();
        assert_eq!(part.parts[0].word.as_deref(), Some("a"));
        assert_eq!(part.parts[1].parts[0].word.as_deref(), Some("b"));
        assert_eq!(part.files["x"], 7);
    }

    /// The overlay replaces a whole section by the YAML that is set for it.
    #[test]
    fn overlay_yaml_replaces_a_section() {
        let part = put(&[("WORD", "old"), ("PARTS", "[{word: a}, {}]"), ("WORD", "~")]).unwrap();
        assert_eq!((part.parts.len(), part.word), (2, None));
    }

    /// The overlay finds keys of maps in any letter case.
    #[test]
    fn overlay_map_keys_ignore_case() {
        let mut map = BTreeMap::from([("X-Thing".to_owned(), String::new())]);
        map.overlay(&["X-THING"], "new").unwrap();
        assert_eq!(map, BTreeMap::from([("X-Thing".to_owned(), "new".to_owned())]));
    }

    /// A gap in a list and a path that leads to no key are errors.
    #[test]
    fn overlay_list_gaps_and_unknown_paths_fail() {
        let gap = put(&[("PARTS_1_WORD", "a")]).unwrap_err();
        assert!(
            matches!(&gap, OverlayError::Invalid(why) if why.contains("next new one would be 0")),
            "{gap:?}"
        );
        assert!(matches!(put(&[("PARTS_X", "a")]), Err(OverlayError::Invalid(_))));
        for path in ["NOTHING", "FILE_X", "WORD_MORE", "word", ""] {
            assert_eq!(put(&[(path, "1")]), Err(OverlayError::Unknown), "{path}");
        }
    }

    /// The error for a value that does not fit does not contain the value.
    #[test]
    fn overlay_error_hides_value() {
        let error = put(&[("WORD", "[hunter2]")]).unwrap_err();
        assert!(
            matches!(&error, OverlayError::Invalid(why) if !why.contains("hunter2")),
            "{error:?}"
        );
    }
}
