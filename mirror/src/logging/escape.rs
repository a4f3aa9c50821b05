//! Values of log fields that come from clients and upstreams: without characters that change how a line is shown, and
//! of bounded length.

use std::fmt::{self, Write};

/// The longest value of a field, in bytes; what is cut is named by its length.
pub(super) const MAX_FIELD: usize = 1024;

/// The longest mark of a cut, in bytes.
const MAX_MARK: usize = 40;

/// A value on its way into a log line.
#[derive(Default)]
pub(super) struct FieldText {
    text: String,
    /// The bytes that did not fit.
    cut: usize,
}

impl FieldText {
    /// Returns the value as it is written: escaped, and with a mark where it was cut.
    pub(super) fn finish(mut self) -> String {
        if self.cut > 0 {
            // Writing to a string cannot fail.
            let _ = write!(self.text, "... ({} bytes cut)", self.cut);
        }
        self.text
    }
}

/// Returns a text as it is written.
pub(super) fn text(value: &str) -> String {
    if value.len() <= MAX_FIELD && is_plain(value) {
        return value.to_owned();
    }
    let mut bounded = FieldText::default();
    // Writing to a string cannot fail.
    let _ = bounded.write_str(value);
    bounded.finish()
}

/// Returns a text that fits into a field with the mark of a cut: for values that are kept until their line is written.
pub(crate) fn shorten(value: String) -> String {
    if value.len() <= MAX_FIELD {
        return value;
    }
    let kept = value.floor_char_boundary(MAX_FIELD - MAX_MARK);
    format!("{}... ({} bytes cut)", &value[..kept], value.len() - kept)
}

impl Write for FieldText {
    fn write_str(&mut self, value: &str) -> fmt::Result {
        if self.cut == 0 && self.text.len() + value.len() <= MAX_FIELD && is_plain(value) {
            self.text.push_str(value);
            return Ok(());
        }
        for (index, character) in value.char_indices() {
            if self.cut > 0 || self.text.len() + character.len_utf8() > MAX_FIELD {
                self.cut += value.len() - index;
                return Ok(());
            }
            if is_hidden(character) {
                write!(self.text, "{}", character.escape_unicode())?;
            } else {
                self.text.push(character);
            }
        }
        Ok(())
    }
}

/// Returns whether a text has nothing to escape, as most have: printable ASCII.
fn is_plain(value: &str) -> bool {
    value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Returns `true` if a character is not shown, or changes how others are shown: controls (the escape sequences of
/// terminals begin with one), line and paragraph separators, and format characters (zero width, right to left). Tabs and
/// line feeds stay, as JSON escapes them.
pub fn is_hidden(character: char) -> bool {
    match character {
        '\t' | '\n' | ' '..='~' => false,
        '\u{2028}' | '\u{2029}' => true,
        character => character.is_control() || is_format(character),
    }
}

/// Returns whether a character is of the Unicode category Cf.
fn is_format(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2064}'
            | '\u{2066}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0001}'
            | '\u{e0020}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;
    use test_case::test_case;

    #[test_case("plain text, \u{e4}\u{4e2d}\n\tand more" => "plain text, \u{e4}\u{4e2d}\n\tand more"; "letters of any language")]
    #[test_case("a\u{202e}b" => "a\\u{202e}b"; "right to left")]
    #[test_case("\u{1b}[31m" => "\\u{1b}[31m"; "a colour of the terminal")]
    #[test_case("\u{9b}31m\u{7f}\r" => "\\u{9b}31m\\u{7f}\\u{d}"; "other controls")]
    #[test_case("\u{200b}\u{feff}\u{2028}\u{e0041}" => "\\u{200b}\\u{feff}\\u{2028}\\u{e0041}"; "without a width")]
    fn hidden_characters_are_escaped(value: &str) -> String {
        text(value)
    }

    /// The table is that of Unicode, as the `regex` crate has it.
    #[test]
    fn format_characters_are_those_of_unicode() {
        let format = Regex::new(r"^\p{Cf}$").unwrap();
        for character in '\0'..=char::MAX {
            let mut buffer = [0; 4];
            let expected = format.is_match(character.encode_utf8(&mut buffer));
            assert_eq!(is_format(character), expected, "{:x}", u32::from(character));
        }
    }

    /// A value that is cut early is not cut again when it is written.
    #[test]
    fn shortened_value_is_cut_once() {
        assert_eq!(shorten("short".to_owned()), "short");
        let short = shorten("a\u{4e2d}".repeat(MAX_FIELD));
        assert!(
            short.len() <= MAX_FIELD && short.ends_with(" bytes cut)"),
            "{short}"
        );
        assert_eq!(text(&short), short);
    }

    #[test]
    fn long_value_is_cut_with_a_mark() {
        assert_eq!(text(&"a".repeat(MAX_FIELD)), "a".repeat(MAX_FIELD));
        let cut = text(&"a".repeat(42_000));
        assert_eq!(cut, format!("{}... (40976 bytes cut)", "a".repeat(MAX_FIELD)));
        // At a character, not within one, also where it comes in pieces.
        let mut bounded = FieldText::default();
        for _ in 0..MAX_FIELD {
            bounded.write_str("a\u{4e2d}").unwrap();
        }
        let cut = bounded.finish();
        assert!(cut.len() < MAX_FIELD + 32 && cut.contains("bytes cut)"), "{cut}");
    }
}
