//! With `tls.mode` `SelfSigned`, between validation and the objects: certificates of the mirror's own.
//!
//! A mirror has an authority, which is good for two years, and a certificate of it, for 90 days. At half of its life
//! the authority gets a successor, which clients are told to trust at once and which signs only a quarter of a life
//! later. Its key is signed by the authority before it, too: a client that was told nothing goes on until that one ends.
//!
//! When to do what is decided from spans and the time alone. Keys are drawn where something is made; what is good is
//! kept byte by byte, so that nothing is written at rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use crds::{RegistryMirror, tls::TlsMode};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::{
    dereference::References,
    desired::names,
    observed::Observed,
    validate::{Accepted, Serving, serving},
};

mod certificate;
mod decide;
mod held;
mod make;

use decide::Step;
use held::Held;
use make::Authority;

/// For how long certificates are good.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// An authority.
    pub authority: Duration,
    /// What it issues; at most a quarter of that, so that it never outlives the authority that clients know.
    pub serving: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            authority: Duration::from_hours(2 * 365 * 24),
            serving: Duration::from_hours(90 * 24),
        }
    }
}

/// A certificate could not be made; a defect, or a system without random numbers.
#[derive(Debug, thiserror::Error)]
#[error("making a certificate: {0}")]
pub struct Error(#[from] rcgen::Error);

/// Whether a mirror's certificates are its own.
pub fn is_wanted(mirror: &RegistryMirror) -> bool {
    mirror.spec.tls.mode == TlsMode::SelfSigned
}

/// What clients in the cluster, and nodes, call a mirror: its Services' names, and the addresses that they have got.
pub fn names(mirror: &RegistryMirror, observed: &Observed) -> BTreeSet<String> {
    let (name, namespace) = (mirror.name_any(), mirror.namespace().unwrap_or_default());
    let headless = names::headless(&name);
    let services = [name.clone(), headless.clone(), format!("*.{headless}")];
    let qualified = services.iter().flat_map(|service| {
        ["svc", "svc.cluster.local"].map(|domain| format!("{service}.{namespace}.{domain}"))
    });
    let short = [name.clone(), format!("{name}.{namespace}")];
    let addresses = observed.service_names.iter().map(|name| canonical(name));
    qualified.chain(short).chain(addresses).collect()
}

/// As a certificate gives it back: an IPv6 address may be written in several ways.
fn canonical(name: &str) -> String {
    name.parse::<IpAddr>()
        .map_or_else(|_| name.to_lowercase(), |address| address.to_string())
}

/// Gives an accepted mirror the certificates that it serves with, if they are its own: those that it has, as far as
/// they are good at that time and for these names.
///
/// # Errors
/// Something could not be made.
pub fn certificates(
    accepted: &mut Accepted<'_>,
    references: &References,
    names: &BTreeSet<String>,
    at: Timestamp,
    terms: &Terms,
) -> Result<(), Error> {
    if is_wanted(accepted.mirror) {
        let held = Held::read(accepted.mirror, references, at.as_second());
        let issued = issue(held, names, at, terms)?;
        (accepted.serving, accepted.authority) = (Some(issued.serving), Some(issued.authority));
    }
    Ok(())
}

/// What a mirror serves with, and its authority as it is kept.
pub struct Issued {
    /// What clients are shown.
    pub serving: Serving,
    /// For the operator alone.
    pub authority: Files,
}

/// The same for a mirror whose spec is not acted on and that serves with certificates of its own: those that it should
/// have now; `None` if it has them, or none of its own.
///
/// # Errors
/// Something could not be made.
pub fn renewal(
    mirror: &RegistryMirror,
    references: &References,
    names: &BTreeSet<String>,
    at: Timestamp,
    terms: &Terms,
) -> Result<Option<Issued>, Error> {
    let held = Held::read(mirror, references, at.as_second());
    if !held.serves() {
        return Ok(None);
    }
    let issued = issue(held, names, at, terms)?;
    let [certificate, key, authority] = serving::OWN;
    let serving = &issued.serving;
    let handed_out = [
        (certificate, Some(&serving.certificate)),
        (key, Some(&serving.key)),
        (authority, serving.authority.as_ref()),
    ];
    let (files, kept) = (references.files.as_ref(), references.authority.as_ref());
    let is_handed_out = files.is_some_and(|files| {
        handed_out
            .into_iter()
            .all(|(file, wanted)| files.data.get(file) == wanted)
    });
    let is_kept = kept.is_some_and(|kept| kept.data == issued.authority);
    Ok((!is_handed_out || !is_kept).then_some(issued))
}

fn issue(mut held: Held, names: &BTreeSet<String>, at: Timestamp, terms: &Terms) -> Result<Issued, Error> {
    let now = at.as_second();
    let authority = step(&mut held, now, terms)?;
    let leaf = held.leaf.take();
    let good = leaf.filter(|leaf| {
        !decide::is_due(
            leaf.standing(names, |issuer| held.trusts(issuer, &authority)),
            now,
        )
    });
    let leaf = match good {
        Some(leaf) => leaf,
        None => authority.issue(names, now, terms)?,
    };
    let changes = decide::next_change(
        authority.span(),
        held.next_span(),
        leaf.span(),
        held.ends(),
        terms,
    );
    let trusted = held.trusted(&authority);
    let serving = Serving {
        certificate: leaf.chain(&authority, now).into_bytes(),
        key: leaf.key.clone(),
        authority: Some(trusted.clone().into_bytes()),
        life: leaf.span().into(),
        changes,
        problem: None,
    };
    Ok(Issued {
        serving,
        authority: held.files(&authority, trusted),
    })
}

/// Lets the authorities take the steps that are due, and gives the one that signs now.
fn step(held: &mut Held, now: i64, terms: &Terms) -> Result<Authority, Error> {
    let mut current = held.current.take();
    loop {
        let step = decide::step(
            current.as_ref().map(Authority::span),
            held.next_span(),
            now,
            terms,
        );
        current = match (step, current) {
            (Step::Keep, Some(current)) => return Ok(current),
            (Step::Announce, Some(current)) => {
                held.next = Some(current.successor(&held.owner, now, terms)?);
                Some(current)
            }
            (Step::Succeed, current) => {
                held.others.extend(current.map(Authority::retire));
                held.next.take()
            }
            (Step::Begin | Step::Keep | Step::Announce, _) => {
                return Authority::first(&held.owner, now, terms);
            }
        };
    }
}

/// A Secret's keys.
pub type Files = BTreeMap<String, Vec<u8>>;
