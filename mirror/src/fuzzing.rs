//! What must hold whatever bytes come in from outside.
//!
//! The fuzzers in `fuzz/` call these functions with bytes that they breed; the tests here call them with every seed,
//! and with whatever once broke them (`fuzz/seeds/TARGET/`).

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "what does not hold ends the fuzzer"
)]

use std::str;

use ::http::{HeaderMap, HeaderValue, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::config::file::File;
use crate::config::{self, Config};
use crate::credentials::Entries;
use crate::range::{Resolved, Wanted};
use crate::{http, pull, store, upstream};

/// What no credential holds by chance.
const SECRET: &str = "correct-horse-battery-staple";

/// Path and query of a request: one route, the same one for whatever is the same path, and never a file outside of
/// the root.
pub fn request(data: &[u8]) {
    if let Some((name, reference)) = http::invariants::request(data) {
        store::invariants::paths(&name, &reference);
    }
}

/// `Range`, after eight bytes of a size: parts lie within the size, and there are few.
pub fn range(data: &[u8]) {
    let Some((size, range)) = data.split_first_chunk() else {
        return;
    };
    let (size, Ok(range)) = (u64::from_le_bytes(*size), HeaderValue::from_bytes(range)) else {
        return;
    };
    let wanted = Wanted::of(&HeaderMap::from_iter([(header::RANGE, range)]), "\"etag\"");
    let single = wanted.single(size);
    let Resolved::Parts(parts) = wanted.resolve(size) else {
        assert_eq!(single, None);
        return;
    };
    assert!((1..=16).contains(&parts.len()), "{parts:?}");
    for part in &parts {
        assert!(part.start < part.end && part.end <= size, "{part:?} of {size}");
    }
    assert_eq!(single.as_slice(), if parts.len() == 1 { &parts[..] } else { &[] });
}

/// `WWW-Authenticate`, a header a line: nobody is shown a credential but at a web address without a user.
pub fn challenge(data: &[u8]) {
    upstream::invariants::challenge(&headers(&header::WWW_AUTHENTICATE, data));
}

/// `Link`, a header a line: the next page is asked for at the same place as this one.
pub fn link(data: &[u8]) {
    upstream::invariants::link(&headers(&header::LINK, data));
}

/// A configuration file, then, each after a zero byte, variables: what is accepted is written in a way that means the
/// same.
pub fn configuration(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut parts = text.split('\0');
    let Ok(mut file) = File::parse(parts.next().unwrap_or_default()) else {
        return;
    };
    let variables = parts.filter_map(|part| part.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    if config::put_over(&mut file, variables).is_err() {
        return;
    }
    let Ok(config) = Config::new(&file) else { return };
    let written = File::from(&config).to_yaml();
    let again = File::parse(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
    let again = Config::new(&again).unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(File::from(&again).to_yaml(), written);
}

/// A credentials file: no secret shows, whatever is wrong with the file.
pub fn credentials(data: &[u8]) {
    // The document as it is, and with secrets that are known.
    show_nothing(data, None);
    let Ok(mut document) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let entries = document.get_mut("auths").and_then(Value::as_object_mut);
    for entry in entries
        .into_iter()
        .flat_map(Map::values_mut)
        .filter_map(Value::as_object_mut)
    {
        for (key, value) in entry.iter_mut().filter(|(_, value)| value.is_string()) {
            match key.as_str() {
                "auth" => *value = STANDARD.encode(format!("user:{SECRET}")).into(),
                "password" | "identitytoken" => *value = SECRET.into(),
                _ => {}
            }
        }
    }
    show_nothing(&serde_json::to_vec(&document).unwrap(), Some(data));
}

fn show_nothing(document: &[u8], unless_in: Option<&[u8]>) {
    let shown = match Entries::parse(document) {
        Ok(entries) => format!("{entries:?}"),
        Err(error) => error,
    };
    let names_it = |text: &[u8]| text.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
    if !unless_in.is_none_or(names_it) {
        assert!(!names_it(shown.as_bytes()), "{shown}");
    }
}

/// A line with a content type, then a manifest: what is served has a media type that a header can carry.
pub fn manifest(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (kind, body) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let kind = HeaderValue::from_bytes(kind).ok();
    pull::invariants::manifest(kind.as_ref().and_then(|kind| kind.to_str().ok()), body);
}

/// `scheduler-state.json`: what is read of it is read again from what is written.
pub fn scheduler_state(data: &[u8]) {
    store::invariants::scheduler_state(data);
}

fn headers(name: &header::HeaderName, data: &[u8]) -> HeaderMap {
    let values = data
        .split(|byte| *byte == b'\n')
        .filter_map(|line| HeaderValue::from_bytes(line).ok());
    values.map(|value| (name.clone(), value)).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};
    use test_case::test_case;

    #[test_case("challenge", crate::fuzzing::challenge)]
    #[test_case("configuration", crate::fuzzing::configuration)]
    #[test_case("credentials", crate::fuzzing::credentials)]
    #[test_case("link", crate::fuzzing::link)]
    #[test_case("manifest", crate::fuzzing::manifest)]
    #[test_case("range", crate::fuzzing::range)]
    #[test_case("request", crate::fuzzing::request)]
    #[test_case("scheduler_state", crate::fuzzing::scheduler_state)]
    fn holds_for_every_seed(target: &str, hold: fn(&[u8])) {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../fuzz/seeds")
            .join(target);
        let seeds: Vec<_> = fs::read_dir(seeds)
            .unwrap()
            .map(|seed| seed.unwrap().path())
            .collect();
        assert!(seeds.len() > 2, "{target} has few seeds");
        for seed in seeds {
            hold(&fs::read(seed).unwrap());
        }
    }
}
