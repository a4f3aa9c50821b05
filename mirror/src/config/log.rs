//! The settings of the log (`log`).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::Error;
use super::file::File;
use super::overlay::Overlay;

/// The log's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is written.
    pub level: Level,
    /// One JSON object a line, or text.
    pub format: Format,
    /// Put into every line, with their types.
    pub fields: BTreeMap<String, Value>,
    /// `true` if each request gets a line.
    pub access: bool,
}

/// The severity of a line, by Distribution's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Only what failed.
    Error,
    /// Also what may need a look.
    Warn,
    /// Also what happens.
    #[default]
    Info,
    /// Also why.
    Debug,
}

/// The format of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `name=value` pairs, for people.
    #[default]
    Text,
    /// A JSON object, for machines.
    Json,
    /// A JSON object with the names that Logstash expects.
    Logstash,
}

impl Overlay for Level {
    const VALUES: &'static str = "error, warn, info or debug";
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.to_lowercase().as_str() {
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            _ => Err(de::Error::custom(
                "not a level: expected error, warn, info or debug",
            )),
        }
    }
}

impl Log {
    pub(super) fn new(file: &File) -> Result<Self, Error> {
        let log = &file.log;
        let format = match log.formatter.as_deref() {
            None | Some("" | "text") => Format::Text,
            Some("json") => Format::Json,
            Some("logstash") => Format::Logstash,
            Some(_) => return Err(Error::invalid("log.formatter", "expected text, json or logstash")),
        };
        Ok(Self {
            level: log.level.or(file.loglevel).unwrap_or_default(),
            format,
            fields: log.fields.clone(),
            access: !log.access_log.disabled,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn log(yaml: &str) -> Result<Log, Error> {
        Log::new(&File::parse(yaml)?)
    }

    #[test_case("{}" => Level::Info)]
    #[test_case("log: {level: DEBUG}" => Level::Debug)]
    #[test_case("loglevel: error" => Level::Error)]
    #[test_case("{loglevel: error, log: {level: warn}}" => Level::Warn; "the newer key wins")]
    fn levels(yaml: &str) -> Level {
        log(yaml).unwrap().level
    }

    #[test_case("{}" => Format::Text)]
    #[test_case("log: {formatter: json}" => Format::Json)]
    #[test_case("log: {formatter: logstash}" => Format::Logstash)]
    fn formats(yaml: &str) -> Format {
        log(yaml).unwrap().format
    }

    #[test]
    fn fields_keep_their_types() {
        let fields = log("log: {fields: {service: registry, shard: 7, zone: '7', canary: true}}")
            .unwrap()
            .fields;
        assert_eq!(fields["service"], "registry");
        assert_eq!(
            (&fields["shard"], &fields["zone"]),
            (&Value::from(7), &Value::from("7"))
        );
        assert_eq!(fields["canary"], true);
    }

    /// An unknown level or format in the log section is an error.
    #[test_case("log: {level: loud}" => "line 1: log.level: not a level: expected error, warn, info or debug")]
    #[test_case("log: {formatter: xml}" => "log.formatter: expected text, json or logstash")]
    fn invalid_log_value_is_an_error(yaml: &str) -> String {
        log(yaml).unwrap_err().to_string()
    }
}
