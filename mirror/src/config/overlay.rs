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

/// A part of the configuration that values can be put over.
pub(crate) trait Overlay: DeserializeOwned {
    /// What a key without a value (YAML's null) means; `None`: nothing.
    fn null() -> Option<Self> {
        None
    }

    /// A new one to descend into; `None` for what has nothing below it.
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

    /// The keys from here on, each with whether it is only looked at for being there.
    #[cfg(test)]
    fn keys(path: &str, keys: &mut Vec<(String, bool)>) {
        keys.push((path.to_owned(), false));
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
    #[cfg(test)]
    fn keys(path: &str, keys: &mut Vec<(String, bool)>) {
        T::keys(path, keys);
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
    #[cfg(test)]
    fn keys(path: &str, keys: &mut Vec<(String, bool)>) {
        T::keys(&format!("{path}[]"), keys);
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
    #[cfg(test)]
    fn keys(path: &str, keys: &mut Vec<(String, bool)>) {
        T::keys(&format!("{path}.NAME"), keys);
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
    ($($type:ty),+) => {
        $(impl Overlay for $type {
            fn null() -> Option<Self> {
                Some(Self::default())
            }
        })+
    };
}

leaf!(bool, u16, u32, String, serde_json::Value);

/// Declares a section of the file: its keys, what they are in the environment where that is not the key in
/// upper case, and their types.
macro_rules! section {
    ($(#[$attribute:meta])* $name:ident {
        $($(#[$field_attribute:meta])* $key:literal $(($env:literal))? => $field:ident: $type:ty,)+
    }) => {
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        $(#[$attribute])*
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[$field_attribute])*
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
            #[cfg(test)]
            fn keys(path: &str, keys: &mut Vec<(String, bool)>) {
                $(
                    let path_of_key = if path.is_empty() { $key.to_owned() } else { format!("{path}.{}", $key) };
                    <$type as crate::config::overlay::Overlay>::keys(&path_of_key, keys);
                )+
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

/// Whether `head` is the key in upper case, or, where the environment has a name of its own, that.
pub(super) fn names(head: &str, key: &str, own: &[&str]) -> bool {
    match own.first() {
        Some(own) => head == *own,
        None => head == key.to_ascii_uppercase(),
    }
}

/// Whether a field is as if it had not been written.
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

    #[test]
    fn values_land_where_their_path_leads() {
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

    #[test]
    fn a_whole_section_is_replaced_by_its_yaml() {
        let part = put(&[("WORD", "old"), ("PARTS", "[{word: a}, {}]"), ("WORD", "~")]).unwrap();
        assert_eq!((part.parts.len(), part.word), (2, None));
    }

    #[test]
    fn keys_of_maps_are_found_whatever_their_case() {
        let mut map = BTreeMap::from([("X-Thing".to_owned(), String::new())]);
        map.overlay(&["X-THING"], "new").unwrap();
        assert_eq!(map, BTreeMap::from([("X-Thing".to_owned(), "new".to_owned())]));
    }

    #[test]
    fn a_gap_in_a_list_and_a_path_to_nowhere_are_errors() {
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

    #[test]
    fn a_value_that_does_not_fit_is_not_repeated_in_the_error() {
        let error = put(&[("WORD", "[hunter2]")]).unwrap_err();
        assert!(
            matches!(&error, OverlayError::Invalid(why) if !why.contains("hunter2")),
            "{error:?}"
        );
    }
}
