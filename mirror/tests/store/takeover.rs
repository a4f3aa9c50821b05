//! Caches of Distribution with a large expiry state: served at once, and they expire when they would have.

use super::*;
use jiff::Timestamp;
use mirror::config::TtlFrom::FirstFetch;
use std::io::{BufWriter, Write};

const WEEK: Duration = Duration::from_hours(168);

/// Writes the expiry state that Distribution would leave: what it has of others, then `ours`, to go in a day.
fn write_state(place: &Place, others: usize, ours: &[&Digest], expires: Timestamp) {
    let file = fs::File::create(place.path().join("scheduler-state.json")).unwrap();
    let mut out = BufWriter::new(file);
    write!(out, "{{").unwrap();
    for other in 0..others {
        let key = format!("library/other-{other}@sha256:{other:064x}");
        let entry = r#""ExpiryData":"2026-11-30T03:00:00.123456789+02:00","EntryType":0"#;
        write!(out, r#""{key}":{{"Key":"{key}",{entry}}},"#).unwrap();
    }
    for (number, digest) in ours.iter().enumerate() {
        let comma = if number == 0 { "" } else { "," };
        let key = format!("library/nginx@{digest}");
        let entry = format!(r#""ExpiryData":"{expires}","EntryType":0"#);
        write!(out, r#"{comma}"{key}":{{"Key":"{key}",{entry}}}"#).unwrap();
    }
    write!(out, "}}").unwrap();
    out.flush().unwrap();
}

/// Pulls at once after the take-over and at the end of it; what the state says when the server stops right then.
async fn pulled_while_it_learns(others: usize, index_is_there: bool) {
    let (place, store) = Place::opened().await;
    let (early, late) = (
        put(&store, &nginx(), b"early").await,
        put(&store, &nginx(), b"late").await,
    );
    store.flush().await;
    drop(store);
    if !index_is_there {
        fs::remove_dir_all(place.path().join("_mirror")).unwrap();
    }
    let expires = Timestamp::from_second(Timestamp::now().as_second()).unwrap() + 24 * HOUR;
    write_state(&place, others, &[&early, &late], expires);

    let begun = Instant::now();
    let store = Store::open(place.path(), place.options()).await.unwrap();
    assert_eq!(get(&store, &nginx(), &early).await.unwrap(), b"early");
    println!("{others} entries: the first answer after {:?}", begun.elapsed());
    assert_eq!(store.expire(Some(WEEK), FirstFetch).await.unwrap(), 0);
    assert!(!store.is_settled(), "it answers before it knows all of the state");
    while !store.is_settled() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("{others} entries: all known after {:?}", begun.elapsed());
    assert_eq!(get(&store, &nginx(), &late).await.unwrap(), b"late");
    store.flush().await;
    let state = fs::read_to_string(place.path().join("scheduler-state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    for digest in [&early, &late] {
        let entry = &state[format!("library/nginx@{digest}")];
        assert_eq!(entry["ExpiryData"], expires.to_string(), "{state}");
    }
    place.clock.advance(23 * HOUR);
    assert_eq!(store.expire(Some(WEEK), FirstFetch).await.unwrap(), 0);
    place.clock.advance(2 * HOUR);
    assert_eq!(store.expire(Some(WEEK), FirstFetch).await.unwrap(), 2);
}

#[tokio::test]
async fn content_pulled_after_adoption_keeps_expiry() {
    for index_is_there in [false, true] {
        pulled_while_it_learns(50_000, index_is_there).await;
    }
}

/// A million entries of an expiry state delay no response.
#[tokio::test]
#[ignore = "writes half a gigabyte; cargo test --release -p mirror --test store -- --ignored --nocapture million"]
async fn million_expiry_entries_delay_no_response() {
    for index_is_there in [false, true] {
        pulled_while_it_learns(1_000_000, index_is_there).await;
    }
}

#[tokio::test]
async fn content_fetched_during_rebuild_has_new_expiry() {
    let place = Place::new();
    let gone = digest(b"gone");
    write_state(&place, 50_000, &[&gone], Timestamp::now() - HOUR);
    let store = Store::open(place.path(), place.options()).await.unwrap();
    put(&store, &nginx(), b"gone").await;
    until(|| store.is_settled()).await;
    assert_eq!(store.expire(Some(WEEK), FirstFetch).await.unwrap(), 0);
    assert!(get(&store, &nginx(), &gone).await.is_some());
}

/// An expiry state that is no file, or no JSON, costs no content.
#[tokio::test]
async fn unreadable_expiry_state_costs_no_content() {
    for damage in [None, Some("[1]"), Some("{\"a\":"), Some("")] {
        let (place, store) = Place::opened().await;
        let layer = put(&store, &nginx(), b"layer").await;
        drop(store);
        let state = place.path().join("scheduler-state.json");
        match damage {
            Some(text) => fs::write(&state, text).unwrap(),
            None => fs::create_dir(&state).unwrap(),
        }
        let store = place.open().await;
        assert_eq!(store.expire(Some(WEEK), FirstFetch).await.unwrap(), 0);
        assert_eq!(get(&store, &nginx(), &layer).await.unwrap(), b"layer");
    }
}
