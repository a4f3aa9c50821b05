//! When a mirror is looked at again though nothing is heard of it.

use std::time::Duration;

use crate::{
    apply,
    observed::Observed,
    retry,
    status::{self, Acted, Outcome},
};

/// A spec that can't be acted on waits for a change; of some changes nobody is told, such as of a name set free.
const REJECTED_RETRY: Duration = Duration::from_secs(30);

/// How long a mirror is left alone. What its certificate is about to need is not put off: it ends to the second.
pub(super) fn after(outcome: &Outcome, observed: &Observed, resync: Duration) -> Duration {
    let rest = retry::jittered(look_again(outcome, observed, resync));
    let change = match outcome {
        Outcome::Acted(acted) => acted.certificate.as_ref().and_then(|c| c.rest(observed.at)),
        Outcome::Paused | Outcome::Rejected(_) | Outcome::Failed(_) => observed
            .certificate
            .and_then(|life| status::until_news(life, observed.at)),
    };
    change.map_or(rest, |change| rest.min(change))
}

/// When to look again though nothing is heard: of quotas, and of claims that an admin makes, nobody tells.
fn look_again(outcome: &Outcome, observed: &Observed, resync: Duration) -> Duration {
    match outcome {
        Outcome::Rejected(_) => resync.min(REJECTED_RETRY),
        Outcome::Acted(Acted { applied, .. })
            if !applied.is_whole() || !applied.refused_claims.is_empty() || observed.lacks_claim() =>
        {
            resync.min(REJECTED_RETRY)
        }
        outcome if outcome.is_news_to_some() => apply::AGAIN_AFTER,
        Outcome::Paused | Outcome::Acted(_) | Outcome::Failed(_) => resync,
    }
}
