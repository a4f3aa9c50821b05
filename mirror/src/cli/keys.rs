//! The names of configuration keys on the command line.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, Error};

use crate::config::reference;

/// Any text; shells complete it to the keys.
#[derive(Clone)]
pub(super) struct Name;

impl TypedValueParser for Name {
    type Value = String;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<String, Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let keys = reference::all()
            .into_iter()
            .map(|entry| reference::plain(&entry.key));
        Some(Box::new(keys.map(PossibleValue::new)))
    }
}
