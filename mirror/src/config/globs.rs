//! Patterns of repositories: `*` stays within a path component, `**` crosses them.

use globset::GlobBuilder;
use regex::bytes::RegexSet;

/// Stands for a `**` inside a component while globset, which knows `**` only as a whole component, reads the rest.
const CROSSING: &str = "\u{1}";

/// A set of patterns, compiled. Two are equal if they were written alike.
#[derive(Clone, Debug, Default)]
pub struct Globs {
    patterns: Vec<String>,
    set: RegexSet,
}

/// A pattern that does not compile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is not a pattern of repositories: {reason}")]
pub struct InvalidGlob {
    pattern: String,
    reason: String,
}

impl Globs {
    /// Compiles these patterns.
    ///
    /// # Errors
    /// The first one that is no valid pattern, with the reason.
    pub fn new(patterns: &[String]) -> Result<Self, InvalidGlob> {
        let compiled: Vec<_> = patterns.iter().map(|p| expression(p)).collect::<Result<_, _>>()?;
        let set = RegexSet::new(compiled).map_err(|error| InvalidGlob {
            pattern: patterns.join(", "),
            reason: error.to_string(),
        })?;
        Ok(Self {
            patterns: patterns.to_vec(),
            set,
        })
    }

    /// Returns `true` if any pattern matches the whole of `text`.
    pub fn matches(&self, text: &str) -> bool {
        self.set.is_match(text.as_bytes())
    }

    /// Returns `true` if there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Returns the patterns as they were written.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }
}

impl PartialEq for Globs {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}

/// Returns the regular expression that is equivalent to the pattern.
fn expression(pattern: &str) -> Result<String, InvalidGlob> {
    let components: Vec<_> = pattern
        .split('/')
        .map(|component| match component {
            "**" => component.to_owned(),
            component => component.replace("**", CROSSING),
        })
        .collect();
    GlobBuilder::new(&components.join("/"))
        .literal_separator(true)
        .build()
        .map(|glob| glob.regex().replace(CROSSING, ".*"))
        .map_err(|error| InvalidGlob {
            pattern: pattern.to_owned(),
            reason: error.kind().to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("library/*", "library/nginx" => true)]
    #[test_case("library/*", "library/a/b" => false; "a star stays within a component")]
    #[test_case("**", "a/b/c" => true)]
    #[test_case("org/**", "org/a/b" => true)]
    #[test_case("org/**", "organisation/a" => false)]
    #[test_case("docker.io/**:latest", "docker.io/library/a/b:latest" => true; "two stars cross inside a component, too")]
    #[test_case("docker.io/**:latest", "docker.io/a:latest" => true)]
    #[test_case("docker.io/**:latest", "docker.io/library/a:1" => false)]
    #[test_case("team-**", "team-a/b/c" => true)]
    #[test_case("team-*", "team-a/b" => false)]
    #[test_case("a.b/**x", "axb/x" => false; "a dot is a dot")]
    #[test_case("docker.io/library/nginx:*", "docker.io/library/nginx:1.27" => true)]
    fn patterns_match_whole_names(pattern: &str, name: &str) -> bool {
        Globs::new(&[pattern.to_owned()]).unwrap().matches(name)
    }

    #[test]
    fn no_pattern_matches_nothing() {
        assert!(!Globs::default().matches("library/nginx"));
        assert!(Globs::default().is_empty());
    }

    #[test]
    fn an_invalid_pattern_is_named() {
        let error = Globs::new(&["ok".into(), "a[".into()]).unwrap_err();
        assert!(error.to_string().contains("\"a[\""), "{error}");
    }

    proptest! {
        /// No pattern and no text makes the matcher panic.
        #[test]
        fn any_pattern_does_not_panic(pattern: String, text: String) {
            let _ = Globs::new(&[pattern]).map(|globs| globs.matches(&text));
        }
    }
}
