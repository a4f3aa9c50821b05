//! "Listing Tags".

use serde_json::json;

use crate::client::{Answer, Place};
use crate::content::{TAGGED, TAGS};
use crate::{Findings, ensure, requirements};

requirements![
    tags_come_with_200_and_the_repositorys_name,
    tags_are_in_lexical_order,
    n_tags_come_where_n_are_asked_for,
    the_link_leads_through_all_tags_once,
    no_tags_and_no_link_come_where_none_are_asked_for,
    tags_after_the_last_one_do_not_have_it,
    the_last_one_goes_without_n,
    tags_of_a_repository_that_is_not_there_are_404_or_none,
];

async fn list(place: &Place, query: &str) -> Result<(Vec<String>, Answer), String> {
    let answer = place
        .get(&format!("/v2/{TAGGED}/tags/list{query}"))
        .await?
        .is(200)?;
    let body = answer.json()?;
    ensure!(body["name"] == TAGGED, "{body}");
    let tags = serde_json::from_value(body["tags"].clone()).map_err(|error| format!("{body}: {error}"))?;
    Ok((tags, answer))
}

fn one(found: Result<(), String>) -> Findings {
    vec![(TAGGED.to_owned(), found)]
}

async fn tags_come_with_200_and_the_repositorys_name(place: Place) -> Findings {
    let listed = async {
        let (mut tags, _) = list(&place, "").await?;
        tags.sort();
        ensure!(tags == TAGS, "{tags:?}");
        Ok(())
    };
    one(listed.await)
}

async fn tags_are_in_lexical_order(place: Place) -> Findings {
    let listed = async {
        let (tags, _) = list(&place, "").await?;
        ensure!(tags == TAGS, "{tags:?}");
        Ok(())
    };
    one(listed.await)
}

async fn n_tags_come_where_n_are_asked_for(place: Place) -> Findings {
    let mut findings = Findings::new();
    for n in [1, 4, TAGS.len(), TAGS.len() + 1] {
        let listed = async {
            let (tags, _) = list(&place, &format!("?n={n}")).await?;
            ensure!(tags == TAGS[..n.min(TAGS.len())], "{tags:?}");
            Ok(())
        };
        findings.push((format!("n={n}"), listed.await));
    }
    findings
}

/// Returns the target of `<…>; rel="next"`, as a path from the root of the registry.
fn next(answer: &Answer) -> Result<Option<String>, String> {
    let link = answer.header("link");
    if link.is_empty() {
        return Ok(None);
    }
    let (target, parameters) = link.trim_start_matches('<').split_once('>').unwrap_or_default();
    ensure!(parameters.replace([' ', '"'], "") == ";rel=next", "{link}");
    let (_, path) = target
        .split_once("/v2/")
        .ok_or_else(|| format!("no path in {link}"))?;
    Ok(Some(format!("/v2/{path}")))
}

async fn the_link_leads_through_all_tags_once(place: Place) -> Findings {
    let mut findings = Findings::new();
    for n in [1, 4] {
        let walked = async {
            let (mut all, mut answer) = list(&place, &format!("?n={n}")).await?;
            let mut pages = 1;
            while let Some(path) = next(&answer)? {
                pages += 1;
                // Some name one more page, which is empty.
                ensure!(pages <= TAGS.len() + 1, "no end: {all:?}");
                answer = place.get(&path).await?.is(200)?;
                let tags = answer.json()?["tags"].clone();
                all.extend(serde_json::from_value::<Vec<String>>(tags).unwrap_or_default());
            }
            ensure!(all == TAGS, "{all:?}");
            Ok(())
        };
        findings.push((format!("n={n}"), walked.await));
    }
    findings
}

async fn no_tags_and_no_link_come_where_none_are_asked_for(place: Place) -> Findings {
    let listed = async {
        let answer = place.get(&format!("/v2/{TAGGED}/tags/list?n=0")).await?.is(200)?;
        ensure!(answer.json()?["tags"] == json!([]), "{}", answer.json()?);
        ensure!(answer.header("link").is_empty(), "a link");
        Ok(())
    };
    one(listed.await)
}

async fn tags_after_the_last_one_do_not_have_it(place: Place) -> Findings {
    let mut findings = Findings::new();
    for (last, expected) in [
        (TAGS[3], &TAGS[4..6]),
        (TAGS[7], &TAGS[8..]),
        (TAGS[8], &[]),
        // A tag that is not there has a place all the same.
        ("c", &TAGS[6..8]),
    ] {
        let listed = async {
            let (tags, _) = list(&place, &format!("?n=2&last={last}")).await?;
            ensure!(tags == expected, "{tags:?}");
            Ok(())
        };
        findings.push((format!("last={last}"), listed.await));
    }
    findings
}

async fn the_last_one_goes_without_n(place: Place) -> Findings {
    let listed = async {
        let (tags, _) = list(&place, &format!("?last={}", TAGS[3])).await?;
        ensure!(tags == TAGS[4..], "{tags:?}");
        Ok(())
    };
    one(listed.await)
}

async fn tags_of_a_repository_that_is_not_there_are_404_or_none(place: Place) -> Findings {
    let listed = async {
        let answer = place
            .get("/v2/conformance/absent/tags/list")
            .await?
            .one_of(&[200, 404])?;
        if answer.status == 200 {
            let tags = answer.json()?["tags"].clone();
            ensure!(tags == json!([]) || tags.is_null(), "{tags}");
            return Ok(());
        }
        answer.says_why().map(drop)
    };
    one(listed.await)
}
