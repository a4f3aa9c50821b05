//! Objects on stdout, as kubectl would have them.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::Failure;

/// In what form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// A document an object
    #[default]
    Yaml,
    /// One object, or a List of several
    Json,
}

/// Prints what `kubectl apply -f -` takes.
///
/// # Errors
/// Those of stdout.
pub(super) fn objects(objects: &[Value], format: OutputFormat) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match (format, objects) {
        (OutputFormat::Yaml, _) => {
            for object in objects {
                let yaml = serde_saphyr::to_string(object).map_err(io::Error::other)?;
                writeln!(stdout, "---\n{}", yaml.trim_end())?;
            }
        }
        (OutputFormat::Json, [object]) => writeln!(stdout, "{object:#}")?,
        (OutputFormat::Json, _) => {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
            writeln!(stdout, "{list:#}")?;
        }
    }
    Ok(())
}
