//! The grammar of challenges (RFC 9110, sections 11.2 and 11.6.1).

/// A challenge with its scheme and parameters.
#[derive(Debug, Default)]
pub(super) struct RawChallenge {
    pub(super) scheme: String,
    /// The parameters in order, without the backslashes of quoted pairs.
    pub(super) parameters: Vec<(String, String)>,
}

impl RawChallenge {
    /// Returns the bytes of its scheme and of all its parameters.
    pub(super) fn size(&self) -> usize {
        let parameters = self
            .parameters
            .iter()
            .map(|(name, value)| name.len() + value.len());
        self.scheme.len() + parameters.sum::<usize>()
    }
}

/// Parses the challenges of a header up to its first error, including that of the error with the parameters before it,
/// as clients do: text after an error is ambiguous.
pub(super) fn parse_challenges(header: &[u8]) -> Vec<RawChallenge> {
    let (mut parser, mut found) = (Parser(header), Vec::<RawChallenge>::new());
    while parser.element(&mut found).is_some() {
        // A comma has to part it from the next one.
        parser.space();
        if parser.0.first().is_some_and(|byte| *byte != b',') {
            break;
        }
    }
    found
}

/// A parser with the remaining input.
struct Parser<'a>(&'a [u8]);

impl<'a> Parser<'a> {
    /// Parses one element of the list: a parameter of the last challenge, or a scheme with its first parameter.
    fn element(&mut self, found: &mut Vec<RawChallenge>) -> Option<()> {
        self.while_(|byte| matches!(byte, b' ' | b'\t' | b','));
        let name = self.token()?;
        if self.equals() {
            let value = self.value()?;
            found.last_mut()?.parameters.push((name, value));
            return Some(());
        }
        found.push(RawChallenge {
            scheme: name,
            parameters: Vec::new(),
        });
        if matches!(self.0.first(), None | Some(b',')) || self.token68() {
            return Some(());
        }
        let name = self.token()?;
        let value = self.equals().then(|| self.value())??;
        found.last_mut()?.parameters.push((name, value));
        Some(())
    }

    fn while_(&mut self, belongs: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.0.iter().position(|byte| !belongs(*byte));
        let (taken, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        taken
    }

    fn space(&mut self) {
        self.while_(|byte| matches!(byte, b' ' | b'\t'));
    }

    fn token(&mut self) -> Option<String> {
        let token = self.while_(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        (!token.is_empty()).then(|| String::from_utf8_lossy(token).into_owned())
    }

    /// Skips `=` with optional space around it; returns `false`, after skipping space, if there is none.
    fn equals(&mut self) -> bool {
        self.space();
        let Some((b'=', rest)) = self.0.split_first() else {
            return false;
        };
        self.0 = rest;
        self.space();
        true
    }

    /// Skips a token68 to the end of the element; no supported scheme has one.
    fn token68(&mut self) -> bool {
        let mut ahead = Parser(self.0);
        let word = ahead.while_(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
        ahead.while_(|byte| byte == b'=');
        ahead.space();
        let whole = !word.is_empty() && matches!(ahead.0.first(), None | Some(b','));
        if whole {
            self.0 = ahead.0;
        }
        whole
    }

    /// Parses a token or a quoted string.
    fn value(&mut self) -> Option<String> {
        let Some((b'"', mut rest)) = self.0.split_first() else {
            return self.token();
        };
        let mut value = Vec::new();
        loop {
            let (first, after) = rest.split_first()?;
            rest = after;
            match first {
                b'"' => break,
                b'\\' => {
                    let (kept, after) = rest.split_first()?;
                    rest = after;
                    value.push(*kept);
                }
                byte => value.push(*byte),
            }
        }
        self.0 = rest;
        Some(String::from_utf8_lossy(&value).into_owned())
    }
}
