//! When to do what, from spans and the time alone. All times are in seconds since 1970.

use super::Terms;
use crate::observed::Life;

/// Certificates begin so much before they are made, for clients whose clock is behind.
pub(super) const SKEW: i64 = 3600;

/// From when to when a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) starts: i64,
    pub(super) ends: i64,
}

impl From<Span> for Life {
    fn from(Span { starts, ends }: Span) -> Self {
        Self { starts, ends }
    }
}

impl Span {
    /// Of what is made now, with a term of so many seconds.
    pub(super) fn from(now: i64, term: i64) -> Self {
        Self {
            starts: now.saturating_sub(SKEW),
            ends: now.saturating_add(term),
        }
    }

    fn made(self) -> i64 {
        self.starts.saturating_add(SKEW)
    }

    /// How much of it is left when this part of its life is.
    fn part(self, of: i64) -> i64 {
        self.ends.saturating_sub(self.made()) / of
    }

    /// Half of its life.
    fn middle(self) -> i64 {
        self.ends - self.part(2)
    }

    /// Two thirds of its life.
    fn due(self) -> i64 {
        self.ends - self.part(3)
    }

    fn is_over(self, now: i64) -> bool {
        self.ends <= now
    }
}

/// What the authorities have to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Keep,
    /// There is none that could sign: make one.
    Begin,
    /// Make the next one, for clients to trust.
    Announce,
    /// The next one signs from now on.
    Succeed,
}

/// Of the authority that signs, and the next one.
pub(super) fn step(current: Option<Span>, next: Option<Span>, now: i64, terms: &Terms) -> Step {
    let good = |span: &Span| !span.is_over(now);
    match (current.filter(good), next.filter(good)) {
        (None, None) => Step::Begin,
        (None, Some(_)) => Step::Succeed,
        (Some(current), None) if now >= current.middle() => Step::Announce,
        (Some(current), Some(next)) if now >= succession(current, next, terms) => Step::Succeed,
        (Some(_), _) => Step::Keep,
    }
}

/// When clients have had a quarter of its life to learn of the next one; at the latest, when what the current one
/// signs would outlive it.
fn succession(current: Span, next: Span, terms: &Terms) -> i64 {
    let learnt = next.made().saturating_add(next.part(4));
    learnt.min(current.ends.saturating_sub(seconds(terms.serving)))
}

/// What clients are shown, as it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) span: Span,
    /// Its authority is one that clients are told to trust.
    pub(super) is_trusted: bool,
    /// It is for the names that are wanted.
    pub(super) names_fit: bool,
}

/// Whether another one has to be issued.
pub(super) fn is_due(standing: Standing, now: i64) -> bool {
    !standing.is_trusted || !standing.names_fit || now >= standing.span.due()
}

/// When the next of these things happens: a step of the authorities, a certificate that is due, the end of one that
/// clients need not trust any more.
pub(super) fn next_change(
    current: Span,
    next: Option<Span>,
    leaf: Span,
    others: impl Iterator<Item = i64>,
    terms: &Terms,
) -> i64 {
    let step = next.map_or(current.middle(), |next| succession(current, next, terms));
    others.fold(step.min(leaf.due()), i64::min)
}

pub(super) fn seconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use test_case::test_case;

    use super::*;

    /// A life of 80 and 10, both without skew.
    const TERMS: Terms = Terms {
        authority: Duration::from_secs(80),
        serving: Duration::from_secs(10),
    };

    fn made_at(now: i64) -> Span {
        Span::from(now, 80)
    }

    #[test_case(None, None, 0 => Step::Begin; "there is none")]
    #[test_case(Some(0), None, 39 => Step::Keep; "young")]
    #[test_case(Some(0), None, 40 => Step::Announce; "at half of its life")]
    #[test_case(Some(0), Some(40), 59 => Step::Keep; "clients still learn of the next one")]
    #[test_case(Some(0), Some(40), 60 => Step::Succeed; "clients had a quarter of a life")]
    #[test_case(Some(0), Some(66), 69 => Step::Keep; "announced late")]
    #[test_case(Some(0), Some(66), 70 => Step::Succeed; "what it signs would outlive it")]
    #[test_case(Some(0), None, 79 => Step::Announce; "nobody looked until its last day")]
    #[test_case(Some(0), None, 80 => Step::Begin; "nobody looked until it had ended")]
    #[test_case(Some(0), Some(40), 80 => Step::Succeed; "ended with a successor")]
    #[test_case(None, Some(40), 41 => Step::Succeed; "its key was lost")]
    #[test_case(Some(40), None, 0 => Step::Keep; "a clock that went back")]
    #[test_case(Some(0), Some(40), 200 => Step::Begin; "both ended")]
    fn authorities(current: Option<i64>, next: Option<i64>, now: i64) -> Step {
        step(current.map(made_at), next.map(made_at), now, &TERMS)
    }

    #[test_case(true, true, 5 => false; "good")]
    #[test_case(true, true, 6 => false; "just before two thirds of its life")]
    #[test_case(true, true, 7 => true; "at two thirds of its life")]
    #[test_case(true, true, 11 => true; "ended")]
    #[test_case(false, true, 0 => true; "of an authority that nobody is told to trust")]
    #[test_case(true, false, 0 => true; "for other names")]
    fn a_certificate_is_due(is_trusted: bool, names_fit: bool, now: i64) -> bool {
        let span = Span::from(0, 10);
        is_due(
            Standing {
                span,
                is_trusted,
                names_fit,
            },
            now,
        )
    }

    #[test_case(0, None, 5, &[] => 12; "the certificate")]
    #[test_case(0, None, 38, &[] => 40; "an announcement")]
    #[test_case(0, Some(40), 58, &[] => 60; "a succession")]
    #[test_case(60, None, 79, &[82] => 82; "an authority that ends")]
    fn the_next_change_is(current: i64, next: Option<i64>, leaf: i64, others: &[i64]) -> i64 {
        let leaf = Span::from(leaf, 10);
        next_change(
            made_at(current),
            next.map(made_at),
            leaf,
            others.iter().copied(),
            &TERMS,
        )
    }

    /// Over ten years, looked at whenever something changes: there is always a certificate, its authority was told to
    /// clients long before, and whoever trusts what was published half a year ago can follow.
    #[test]
    fn nothing_ever_ends_in_use() {
        const DAY: i64 = 24 * 3600;
        let terms = Terms::default();
        let (life, term) = (seconds(terms.authority), seconds(terms.serving));
        let (mut now, mut current, mut next) = (0, Span::from(0, life), None);
        let mut leaf = Span::from(0, term);
        let mut signer = current;
        let (mut announced, mut steps) = (i64::MIN, 0);
        while now < 3650 * DAY {
            match step(Some(current), next, now, &terms) {
                Step::Announce => (next, announced) = (Some(Span::from(now, life)), now),
                Step::Succeed => {
                    assert!(now - announced >= 180 * DAY, "clients had half a year");
                    current = next.take().unwrap();
                }
                Step::Keep => {}
                Step::Begin => panic!("at {now} there is none"),
            }
            if now >= leaf.due() {
                (leaf, signer) = (Span::from(now, term), current);
            }
            assert!(leaf.ends <= signer.ends, "a certificate outlives its authority");
            let change = next_change(current, next, leaf, std::iter::empty(), &terms);
            assert!(change > now && change < leaf.ends, "nobody looks in time");
            (now, steps) = (change, steps + 1);
        }
        assert!((60..120).contains(&steps), "{steps} looks in ten years");
    }
}
