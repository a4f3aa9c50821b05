//! Generated documents: accepted ones with a change in one place.

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

/// Every place in a value, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(fields) => {
            fields
                .iter()
                .for_each(|(name, value)| places(value, &format!("{at}/{}", escaped(name)), found));
        }
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, value)| places(value, &format!("{at}/{index}"), found));
        }
        _ => {}
    }
}

/// Puts something else in one place of a document's spec.
pub(crate) fn mutate(document: &mut Value, random: &mut StdRng) {
    let values = json!([
        null, true, -1, 0, 1, 65536, "", "a", "UPPER", "a b", "a/b", "10.0.0.1", "::1", "1Gi", "0Gi", "1e9", "5m", "-5s",
        "1h30m", "Ephemeral", "NodePort", "https://example.com/a", "http://example.com", {}, [], {"name": "a"}, [{}], [null],
    ]);
    let mut found = Vec::new();
    places(&document["spec"], "/spec", &mut found);
    let place = found.choose(random).and_then(|place| document.pointer_mut(place));
    let (Some(place), Some(value)) = (place, values.as_array().and_then(|values| values.choose(random)))
    else {
        return;
    };
    match place {
        Value::Object(fields) if random.random_bool(0.5) => {
            let name = ["other", "remoteURL", "size", "name", "nodePort"]
                .choose(random)
                .map_or("", |name| *name);
            fields.insert(name.to_owned(), value.clone());
        }
        Value::Array(items) if random.random_bool(0.5) => {
            items.push(items.first().unwrap_or(value).clone());
        }
        place => *place = value.clone(),
    }
}
