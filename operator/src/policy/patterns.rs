//! Patterns of names.

use std::fmt;

use mirror::config::{Globs, globs::InvalidGlob};

/// A list of patterns of names, in which `*` stays between two `/` and `**` does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PatternList(Globs);

impl PatternList {
    /// Compiles patterns.
    ///
    /// # Errors
    /// The first one that is no pattern.
    pub fn new(patterns: &[String]) -> Result<Self, InvalidGlob> {
        Ok(Self(Globs::new(patterns)?))
    }

    /// Compiles constants.
    #[expect(
        clippy::expect_used,
        reason = "the patterns are constants, and a test compiles them"
    )]
    pub(super) fn from_constants(patterns: &[&str]) -> Self {
        let patterns: Vec<_> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Self::new(&patterns).expect("a constant pattern compiles")
    }

    /// Returns if a pattern matches the whole name.
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }

    /// Returns the patterns as they were written.
    pub fn as_written(&self) -> &[String] {
        self.0.patterns()
    }
}

impl fmt::Display for PatternList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_written() {
            [] => f.write_str("none"),
            patterns => f.write_str(&patterns.join(", ")),
        }
    }
}
