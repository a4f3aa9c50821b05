//! `auth`: a map of one provider, or just its name.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::IgnoredKey;
use crate::config::overlay::section;

section! {
    /// The access control for clients; without a provider, every client may pull.
    #[serde(remote = "Self")]
    Auth {
        /// The users of a file.
        "htpasswd" => htpasswd: Option<Htpasswd>,
        /// Tokens of a server of their own.
        "token" => token: IgnoredKey,
        /// A check for development.
        "silly" => silly: IgnoredKey,
        /// No check of clients.
        "none" => none: IgnoredKey,
    }
}

section! {
    /// The users of a file.
    Htpasswd {
        /// The realm that the challenge names.
        "realm" => realm: Option<String>,
        /// The file of users; only its bcrypt entries count.
        "path" => path: Option<String>,
    }
}

impl Serialize for Auth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Auth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MapOrName)
    }
}

struct MapOrName;

impl<'de> Visitor<'de> for MapOrName {
    type Value = Auth;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of one provider and its options, or `htpasswd` or `none`")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Auth, A::Error> {
        Auth::deserialize(MapAccessDeserializer::new(map))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Auth, E> {
        match name {
            "htpasswd" => Ok(Auth {
                htpasswd: Some(Htpasswd::default()),
                ..Auth::default()
            }),
            "none" => Ok(Auth::default()),
            _ => Err(E::custom("the only provider here is `htpasswd`")),
        }
    }
}
