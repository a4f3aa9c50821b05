//! The grammar of challenges (RFC 9110, sections 11.2 and 11.6.1).

/// A challenge's words.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) scheme: String,
    /// By name, in their order; no backslash is left that stands before what it keeps.
    pub(super) parameters: Vec<(String, String)>,
}

impl Words {
    /// Returns the bytes of its scheme and of all its parameters.
    pub(super) fn size(&self) -> usize {
        let parameters = self
            .parameters
            .iter()
            .map(|(name, value)| name.len() + value.len());
        self.scheme.len() + parameters.sum::<usize>()
    }
}

/// All challenges of a header up to its first mistake, that of the mistake with the parameters before it, as clients
/// read them: what follows a mistake can't be told apart.
pub(super) fn challenges(header: &[u8]) -> Vec<Words> {
    let (mut rest, mut found) = (Rest(header), Vec::<Words>::new());
    while rest.element(&mut found).is_some() {
        // A comma has to part it from the next one.
        rest.space();
        if rest.0.first().is_some_and(|byte| *byte != b',') {
            break;
        }
    }
    found
}

/// What is not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// One element of the list: a parameter of the last challenge, or a scheme with what follows it up to a comma.
    fn element(&mut self, found: &mut Vec<Words>) -> Option<()> {
        self.while_(|byte| matches!(byte, b' ' | b'\t' | b','));
        let name = self.token()?;
        if self.equals() {
            let value = self.value()?;
            found.last_mut()?.parameters.push((name, value));
            return Some(());
        }
        found.push(Words {
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

    /// Whether there is a sign of equality, which may have space around it; space is skipped in any case.
    fn equals(&mut self) -> bool {
        self.space();
        let Some((b'=', rest)) = self.0.split_first() else {
            return false;
        };
        self.0 = rest;
        self.space();
        true
    }

    /// Credentials in one word, to the end of the element: of no scheme that is answered.
    fn token68(&mut self) -> bool {
        let mut ahead = Rest(self.0);
        let word = ahead.while_(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
        ahead.while_(|byte| byte == b'=');
        ahead.space();
        let whole = !word.is_empty() && matches!(ahead.0.first(), None | Some(b','));
        if whole {
            self.0 = ahead.0;
        }
        whole
    }

    /// A token or a quoted string.
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
