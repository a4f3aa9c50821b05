//! Masks secrets in texts of servers, in whatever notation a server repeats them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};

/// The text in place of a secret.
const MASK: &str = "[secret]";
/// The fewest bytes of a secret that is found in every notation: a shorter one would be found in most texts.
const MIN_FOLDED: usize = 4;
/// The longest name of an entity, in characters.
const MAX_ENTITY: usize = 10;
/// The number of nested notations that are decoded, such as a percent-encoded text in a JSON string.
const MAX_NESTED: usize = 3;

/// Returns the text with each of these secrets masked.
///
/// A secret is found in upper and lower case; percent-encoded, also twice; with escapes of JSON or entities of HTML; in
/// UTF-8 that was read as Latin-1; with letters composed or decomposed (Unicode NFC, NFD); in base64, with either alphabet
/// and without padding; in hexadecimal; and with spaces, line breaks or invisible characters in it.
pub(crate) fn mask_secrets<'s>(text: &str, secrets: impl IntoIterator<Item = &'s str>) -> String {
    let mut short = Vec::new();
    let mut needles = Needles::default();
    for secret in secrets {
        if Folded::fold(Symbol::read(secret)).text.len() < MIN_FOLDED {
            short.extend((!secret.is_empty()).then_some(secret));
            continue;
        }
        needles.add_notations(secret);
        if !secret.is_ascii() {
            needles.add_notations(&ComposingNormalizerBorrowed::new_nfc().normalize(secret));
            needles.add_notations(&DecomposingNormalizerBorrowed::new_nfd().normalize(secret));
        }
    }
    let mut found = Vec::new();
    let mut symbols = if needles.0.is_empty() {
        Vec::new()
    } else {
        Symbol::read(text)
    };
    for _ in 0..=MAX_NESTED {
        found.extend(needles.find(&symbols));
        let decoded = decode(&symbols);
        if decoded.len() == symbols.len() {
            break;
        }
        symbols = decoded;
    }
    let masked = replace(text, found);
    short
        .into_iter()
        .fold(masked, |text, secret| text.replace(secret, MASK))
}

/// Returns the host that a client names, with the user information before it masked (RFC 3986, 3.2.1).
pub(crate) fn mask_user(host: &str) -> Cow<'_, str> {
    // A client may encode the sign twice.
    let ends = [
        host.rfind('@').map(|at| at + 1),
        host.rfind("%40").map(|at| at + 3),
        host.rfind("%2540").map(|at| at + 5),
    ];
    match ends.into_iter().flatten().max() {
        Some(end) => Cow::Owned(format!("{MASK}@{}", &host[end..])),
        None => Cow::Borrowed(host),
    }
}

/// Returns a path with the user information before the host in it masked: no name of a repository has an `@`.
pub(crate) fn mask_user_in_path(path: &str) -> Cow<'_, str> {
    let start = if path.starts_with("/v2/") { 4 } else { 1 };
    match path.split_at_checked(start) {
        Some((prefix, rest)) => match mask_user(rest) {
            Cow::Owned(masked) => Cow::Owned(format!("{prefix}{masked}")),
            Cow::Borrowed(_) => Cow::Borrowed(path),
        },
        None => Cow::Borrowed(path),
    }
}

/// The folded notations of secrets, and the same without `+`, which is a space in some encodings.
#[derive(Default)]
struct Needles(BTreeSet<(String, String)>);

/// A character with its place in the text. Bytes that were decoded are characters of Latin-1.
#[derive(Clone, Debug)]
struct Symbol {
    value: char,
    place: Range<usize>,
}

/// A text in the form in which secrets are compared.
#[derive(Default)]
struct Folded {
    text: String,
    /// The place of each byte of `text` in the original.
    places: Vec<Range<usize>>,
}

impl Needles {
    /// Adds all notations of a secret.
    fn add_notations(&mut self, secret: &str) {
        // UTF-8 that was read as Latin-1.
        let latin1: String = secret.bytes().map(char::from).collect();
        let (upper, lower) = (secret.to_uppercase(), secret.to_lowercase());
        let encoded = [STANDARD_NO_PAD.encode(secret), hex::encode(secret)];
        let notations = [secret, &latin1, &upper, &lower].into_iter();
        for notation in notations.chain(encoded.iter().map(String::as_str)) {
            self.add(notation);
            self.add(notation.trim_end_matches('='));
        }
    }

    /// Adds a notation, unless it is too short.
    fn add(&mut self, notation: &str) {
        let symbols = Symbol::read(notation);
        let (with_plus, without_plus) = (
            Folded::fold(symbols.iter().cloned()),
            Folded::fold(without_plus(&symbols)),
        );
        if with_plus.text.len() >= MIN_FOLDED {
            self.0.insert((with_plus.text, without_plus.text));
        }
    }

    /// Returns the places of all notations.
    fn find(&self, symbols: &[Symbol]) -> Vec<Range<usize>> {
        let folded = Folded::fold(symbols.iter().cloned());
        let spaced = Folded::fold(without_plus(symbols));
        let mut found = Vec::new();
        for (with_plus, without_plus) in &self.0 {
            found.extend(folded.find(with_plus));
            if without_plus.len() >= MIN_FOLDED {
                found.extend(spaced.find(without_plus));
            }
        }
        found
    }
}

fn without_plus(symbols: &[Symbol]) -> impl Iterator<Item = Symbol> {
    symbols.iter().filter(|symbol| symbol.value != '+').cloned()
}

impl Symbol {
    /// Returns the characters of a text.
    fn read(text: &str) -> Vec<Self> {
        let symbol = |(at, value): (usize, char)| {
            let place = at..at + value.len_utf8();
            let bytes = text.get(place.clone()).unwrap_or_default().bytes();
            let is_ascii = value.is_ascii() || !is_visible(value);
            // Bytes, as percent-encoding has them.
            let values: Vec<char> = if is_ascii {
                vec![value]
            } else {
                bytes.map(char::from).collect()
            };
            let symbols = values.into_iter().map(move |value| Self {
                value,
                place: place.clone(),
            });
            symbols.collect::<Vec<_>>()
        };
        text.char_indices().flat_map(symbol).collect()
    }
}

impl Folded {
    /// Folds case and the alphabets of base64, and drops what a reader does not see.
    fn fold(symbols: impl IntoIterator<Item = Symbol>) -> Self {
        let mut folded = Self::default();
        for Symbol { value, place } in symbols.into_iter().filter(|symbol| is_visible(symbol.value)) {
            let value = match value.to_ascii_lowercase() {
                '-' => '+',
                '_' => '/',
                value => value,
            };
            folded.text.push(value);
            folded.places.resize(folded.text.len(), place);
        }
        folded
    }

    /// Returns the places of a folded secret in the original text.
    fn find<'f>(&'f self, needle: &'f str) -> impl Iterator<Item = Range<usize>> + 'f {
        self.text.match_indices(needle).filter_map(|(at, found)| {
            let first = self.places.get(at)?;
            let last = self.places.get((at + found.len()).checked_sub(1)?)?;
            Some(first.start..last.end)
        })
    }
}

/// Returns `false` for spaces, controls, and characters that take no room.
fn is_visible(value: char) -> bool {
    let is_hidden = matches!(value, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !(value.is_whitespace() && value.is_ascii() || value.is_control() && value.is_ascii() || is_hidden)
}

/// Decodes one level of percent-encoding, of JSON's escapes (RFC 8259, 7), and of the entities of XML and HTML.
fn decode(symbols: &[Symbol]) -> Vec<Symbol> {
    let (mut decoded, mut at) = (Vec::with_capacity(symbols.len()), 0);
    while let Some(symbol) = symbols.get(at) {
        let (value, length) = escape(&symbols[at..]).unwrap_or((symbol.value, 1));
        let end = symbols
            .get(at + length - 1)
            .map_or(symbol.place.end, |last| last.place.end);
        let mut buffer = [0; 4];
        let bytes = value.encode_utf8(&mut buffer).bytes();
        let is_byte = length <= 3 || value.is_ascii();
        let values: Vec<char> = if is_byte {
            vec![value]
        } else {
            bytes.map(char::from).collect()
        };
        decoded.extend(values.into_iter().map(|value| Symbol {
            value,
            place: symbol.place.start..end,
        }));
        at += length;
    }
    decoded
}

/// Returns the character that an escape at the start stands for, and the number of its symbols.
fn escape(symbols: &[Symbol]) -> Option<(char, usize)> {
    let number = |range: Range<usize>| {
        let digits: String = symbols.get(range)?.iter().map(|symbol| symbol.value).collect();
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_hex.then(|| u32::from_str_radix(&digits, 16).ok())?
    };
    match (symbols.first()?.value, symbols.get(1)?.value) {
        ('%', _) => Some((char::from_u32(number(1..3)?)?, 3)),
        ('\\', 'u') => match (number(2..6)?, symbols.get(6..8)) {
            (high @ 0xd800..=0xdbff, Some([backslash, u])) if (backslash.value, u.value) == ('\\', 'u') => {
                let low = number(8..12)?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                Some((char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + low)?, 12))
            }
            (value, _) => Some((char::from_u32(value)?, 6)),
        },
        ('&', _) => entity(symbols),
        ('\\', 'x') => Some((char::from_u32(number(2..4)?)?, 4)),
        ('\\', 'b' | 'f' | 'n' | 'r' | 't') => Some((' ', 2)),
        ('\\', quoted @ ('"' | '\\' | '/' | '\'')) => Some((quoted, 2)),
        _ => None,
    }
}

/// Returns the character of an entity at the start, and the number of its symbols.
fn entity(symbols: &[Symbol]) -> Option<(char, usize)> {
    let name = symbols.get(1..)?.iter().map(|symbol| symbol.value);
    let name: String = name.take(MAX_ENTITY).take_while(|value| *value != ';').collect();
    let length = name.chars().count();
    if symbols.get(length + 1)?.value != ';' {
        return None;
    }
    let value = match name.as_str() {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        number => {
            let number = number.strip_prefix('#')?;
            let parsed = match number.strip_prefix(['x', 'X']) {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => number.parse(),
            };
            char::from_u32(parsed.ok()?)?
        }
    };
    Some((value, length + 2))
}

/// Replaces these places of a text by [`MASK`]; places that overlap get one.
fn replace(text: &str, mut places: Vec<Range<usize>>) -> String {
    places.sort_unstable_by_key(|place| place.start);
    let (mut masked, mut end) = (String::with_capacity(text.len()), 0);
    for place in places {
        if place.start >= end {
            masked.push_str(text.get(end..place.start).unwrap_or_default());
            masked.push_str(MASK);
        }
        end = end.max(place.end);
    }
    masked.push_str(text.get(end..).unwrap_or_default());
    masked
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    const SECRET: &str = "Pa55/w+rd \"Ä\"\\x?";

    /// A secret is masked in each notation, and the words around it stay.
    #[test_case(SECRET; "as it is")]
    #[test_case(&SECRET.to_ascii_lowercase(); "lower case")]
    #[test_case(&SECRET.to_ascii_uppercase(); "upper case")]
    #[test_case("Pa55%2Fw%2Brd%20%22%C3%84%22%5Cx%3F"; "percent-encoded")]
    #[test_case("pa55%2fw%2brd+%22%c3%84%22%5cx%3f"; "form-encoded in lower case")]
    #[test_case("%50%61%35%35%2F%77%2B%72%64%20%22%C3%84%22%5C%78%3F"; "each byte percent-encoded")]
    #[test_case("Pa55%252Fw%252Brd%2520%2522%25C3%2584%2522%255Cx%253F"; "percent-encoded twice")]
    #[test_case(r#"Pa55\/w+rd \"Ä\"\\x?"#; "escapes of JSON")]
    #[test_case(r"Pa55/w+rd \u0022\u00c4\u0022\u005cx?"; "numbers of JSON")]
    #[test_case("P a\t5\r\n5/w+\u{200b}rd \"Ä\"\\x?"; "split")]
    #[test_case("pa55/w+rd \"ä\"\\x?"; "lower case of other letters")]
    #[test_case("Pa55/w+rd \"Ã\u{84}\"\\x?"; "read as Latin-1")]
    #[test_case("Pa55/w+rd \"A\u{308}\"\\x?"; "decomposed")]
    #[test_case("Pa55%2Fw%2Brd%20%22A%CC%88%22%5Cx%3F"; "decomposed and percent-encoded")]
    #[test_case("UGE1NS93K3JkICJBzIgiXHg/"; "decomposed in base64")]
    #[test_case("Pa55/w+rd &quot;&#xC4;&#34;&#92;x?"; "entities of HTML")]
    #[test_case("UGE1NS93K3JkICLDhCJceD8="; "base64")]
    #[test_case("UGE1NS93K3JkICLDhCJceD8"; "base64 without padding")]
    #[test_case("UGE1 NS93\nK3JkICLDhCJceD8"; "base64 in lines")]
    #[test_case("UGE1NS93K3JkICLDhCJceD8%3D"; "base64 percent-encoded")]
    #[test_case("506135352F772B72642022C384225C783F"; "hexadecimal")]
    fn secret_is_masked_in_each_notation(echoed: &str) {
        let masked = mask_secrets(&format!("user x: {echoed} is wrong"), [SECRET]);
        let left = masked.replace("%3D", "").replace('=', "");
        assert_eq!(left, "user x: [secret] is wrong", "{masked}");
    }

    #[test]
    fn url_safe_base64_is_masked() {
        let secret = "??>>??>>~~";
        let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret);
        assert!(encoded.contains('_') || encoded.contains('-'), "{encoded}");
        for secret in [secret, &STANDARD_NO_PAD.encode(secret)] {
            assert_eq!(mask_secrets(&format!("a {encoded} b"), [secret]), "a [secret] b");
        }
    }

    /// A secret whose letters are decomposed is masked in a text that composes them.
    #[test]
    fn composed_notation_of_secret_is_masked() {
        assert_eq!(
            mask_secrets("x mot-dépassé y", ["mot-de\u{301}passe\u{301}"]),
            "x [secret] y"
        );
    }

    #[test_case("/v2/user:pw@quay.io/app/manifests/1" => "/v2/[secret]@quay.io/app/manifests/1"; "a registry path")]
    #[test_case("/v2/user:p/w%40quay.io/app/manifests/1" => "/v2/[secret]@quay.io/app/manifests/1"; "a slash and an encoded sign")]
    #[test_case("/user@host/" => "/[secret]@host/"; "another path")]
    #[test_case("/v2/library/app/tags/list" => "/v2/library/app/tags/list"; "no user")]
    #[test_case("*" => "*"; "no path")]
    fn user_in_path_is_masked(path: &str) -> String {
        mask_user_in_path(path).into_owned()
    }

    #[test]
    fn surrogates_of_json_are_masked() {
        let masked = mask_secrets(r"x key-\ud83d\ude00-key y", ["key-\u{1f600}-key"]);
        assert_eq!(masked, "x [secret] y");
    }

    /// Short secrets are masked where they are as they are; an empty one is nowhere.
    #[test_case("abc", "x abc ABC" => "x [secret] ABC"; "short")]
    #[test_case("", "x abc" => "x abc"; "empty")]
    #[test_case("hunter2", "no such thing 100% \\" => "no such thing 100% \\"; "absent")]
    #[test_case("hunter2", "hunter2hunter2 Hunter2" => "[secret][secret] [secret]"; "several")]
    fn other_texts_stay(secret: &str, text: &str) -> String {
        mask_secrets(text, [secret])
    }

    #[test_case("docker.io:443" => "docker.io:443"; "none")]
    #[test_case("user:pw@docker.io" => "[secret]@docker.io"; "a user and a password")]
    #[test_case("https://p@ss@docker.io" => "[secret]@docker.io"; "two signs")]
    #[test_case("user%3Apw%40docker.io" => "[secret]@docker.io"; "encoded twice")]
    #[test_case("pw@" => "[secret]@"; "no host")]
    fn user_of_a_host_is_masked(host: &str) -> String {
        mask_user(host).into_owned()
    }

    proptest! {
        /// No text and no secret makes it panic, and nothing of a long secret is left.
        #[test]
        fn no_secret_is_left(before in "\\PC{0,20}", secret in "[a-zA-Z0-9/+=%\\\\\" -]{8,40}", after in "\\PC{0,20}") {
            prop_assume!(secret.split_whitespace().collect::<String>().len() >= MIN_FOLDED);
            let masked = mask_secrets(&format!("{before}{secret}{after}"), [secret.as_str()]);
            prop_assert!(!masked.contains(&secret), "{masked}");
        }

        #[test]
        fn no_text_makes_it_panic(text: String, secret: String) {
            mask_secrets(&text, [secret.as_str()]);
        }
    }
}
