//! One event, one line.

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{FormatEvent, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::escape::{self, FieldText};
use crate::config::Log;
use crate::config::log::Format;

/// The format of log lines.
pub(super) struct Line {
    format: Format,
    fields: Vec<(String, Value)>,
}

impl Line {
    pub(super) fn new(log: &Log) -> Self {
        let fields = log.fields.iter();
        Self {
            format: log.format,
            fields: fields
                .map(|(name, value)| (own_name(name), value.clone()))
                .collect(),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields(Vec::new());
        fields.put("time", format!("{:.3}", Timestamp::now()));
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        fields.put("level", if level == "warn" { "warning" } else { &level });
        fields.put("msg", "");
        fields.put("module", event.metadata().target());
        event.record(&mut fields);
        for (name, value) in &self.fields {
            fields.put(name, value.clone());
        }
        if self.format == Format::Logstash {
            fields.put("@version", "1");
            fields.put("type", "log");
        }
        write(self.format, &fields, writer)
    }
}

/// Returns the name of a configured field, apart from those that the line itself has, as Distribution does it.
fn own_name(name: &str) -> String {
    if ["time", "level", "msg", "message", "@timestamp"].contains(&name) {
        format!("fields.{name}")
    } else {
        name.to_owned()
    }
}

fn write(format: Format, fields: &Fields, mut writer: Writer<'_>) -> fmt::Result {
    let line = match format {
        Format::Json => serde_json::to_string(fields),
        Format::Logstash => serde_json::to_string(&Logstash(fields)),
        Format::Text => {
            let mut space = "";
            for (name, value) in &fields.0 {
                match value.as_str().filter(|text| is_bare(text)) {
                    Some(text) => write!(writer, "{space}{name}={text}")?,
                    // JSON's quotes and escapes keep a line a line.
                    None => write!(writer, "{space}{name}={value}")?,
                }
                space = " ";
            }
            return writeln!(writer);
        }
    };
    writeln!(writer, "{}", line.map_err(|_| fmt::Error)?)
}

fn is_bare(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+:".contains(c);
    !text.is_empty() && text.chars().all(plain)
}

/// In the order in which they came; the first value of a name stays, but for the message.
struct Fields(Vec<(String, Value)>);

impl Fields {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        let name = if name == "message" { "msg" } else { name };
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, message)) if name == "msg" => *message = value.into(),
            Some(_) => {}
            None => self.0.push((name.to_owned(), value.into())),
        }
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Fields under the names that Logstash expects, as the formatter of that name gives them in Distribution.
struct Logstash<'a>(&'a Fields);

impl Serialize for Logstash<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let renamed = self.0.0.iter().map(|(name, value)| match name.as_str() {
            "time" => ("@timestamp", value),
            "msg" => ("message", value),
            name => (name, value),
        });
        serializer.collect_map(renamed)
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = FieldText::default();
        // A value whose formatting fails is written as far as it came.
        let _ = write!(text, "{value:?}");
        self.put(field.name(), text.finish());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), escape::text(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::Arc;
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Written {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// The lines that `events` write.
    fn lines(format: Format, events: impl FnOnce()) -> String {
        let log = Log {
            level: crate::config::log::Level::Debug,
            format,
            fields: BTreeMap::from([
                ("service".to_owned(), "mirror".into()),
                ("shard".to_owned(), 7.into()),
                ("message".to_owned(), "configured".into()),
            ]),
            access: true,
        };
        let written = Written::default();
        let subscriber = tracing_subscriber::fmt()
            .event_format(Line::new(&log))
            .with_writer(written.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, events);
        let bytes = written.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_line_has_distribution_names_and_configured_fields() {
        let line = lines(Format::Json, || {
            tracing::warn!(bytes = 7, outcome = %"hit", "a \"message\"\nof two lines");
        });
        let line: Value = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!(line["level"], "warning");
        assert_eq!(line["msg"], "a \"message\"\nof two lines");
        assert_eq!(line["bytes"], 7);
        assert_eq!(line["outcome"], "hit");
        assert_eq!((&line["service"], &line["shard"]), (&"mirror".into(), &7.into()));
        assert_eq!(line["fields.message"], "configured");
        assert!(line["time"].as_str().unwrap().parse::<Timestamp>().is_ok());
    }

    /// The names are those of Logstash's event format: `@timestamp`, `@version`, `message`, `level`, `type`.
    #[test]
    fn logstash_line_has_its_names() {
        let line = lines(Format::Logstash, || tracing::warn!(bytes = 7, "done"));
        assert_eq!(line.lines().count(), 1, "{line}");
        let line: Value = serde_json::from_str(&line).unwrap();
        for (name, value) in [
            ("@version", "1"),
            ("level", "warning"),
            ("message", "done"),
            ("type", "log"),
        ] {
            assert_eq!(line[name], value, "{line}");
        }
        assert_eq!((&line["bytes"], &line["service"]), (&7.into(), &"mirror".into()));
        assert!(line["@timestamp"].as_str().unwrap().parse::<Timestamp>().is_ok());
        assert!(line.get("time").is_none() && line.get("msg").is_none(), "{line}");
    }

    /// No character of a client or an upstream changes how a line is shown, in any format, nor how long it gets.
    #[test]
    fn hidden_characters_and_long_fields_are_harmless() {
        let agent = format!("\u{202e}\u{1b}[2J{}", "x".repeat(42_000));
        for format in [Format::Json, Format::Logstash, Format::Text] {
            let line = lines(format, || {
                tracing::info!(target: "access", agent = %agent, user = agent.as_str(), "{agent}");
            });
            assert_eq!(line.lines().count(), 1);
            assert!(!line.contains(['\u{202e}', '\u{1b}']), "{line}");
            assert!(line.contains("u{202e}") && line.contains("bytes cut)"), "{line}");
            assert!(line.len() < 4_000, "{}", line.len());
        }
    }

    /// A text line quotes the characters that would break it.
    #[test]
    fn text_line_quotes_special_characters() {
        let line = lines(Format::Text, || {
            tracing::info!(path = "/a b\nc=d", code = 200, "done");
        });
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(
            line.contains(r#"path="/a b\nc=d""#) && line.contains("code=200"),
            "{line}"
        );
        assert!(
            line.contains("msg=done") && line.contains("service=mirror"),
            "{line}"
        );
    }
}
