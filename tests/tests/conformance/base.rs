//! "Determining Support", "Error Codes", and what a registry that is not pushed to says to those who push.

use http::Method;

use crate::client::Place;
use crate::content::REPOSITORY;
use crate::manifests::ACCEPT;
use crate::{Findings, requirements};

requirements![
    the_base_answers_200,
    an_error_in_json_has_the_specified_form_and_code,
    a_push_by_a_digest_that_is_none_is_a_mistake,
    what_can_not_be_deleted_is_refused_with_400_or_405,
];

async fn the_base_answers_200(place: Place) -> Findings {
    let answer = async |place: Place| place.get("/v2/").await?.is(200).map(drop);
    vec![("/v2/".into(), answer(place).await)]
}

async fn an_error_in_json_has_the_specified_form_and_code(place: Place) -> Findings {
    let absent = format!("sha256:{}", "0".repeat(64));
    let mut findings = Findings::new();
    for path in [
        format!("/v2/{REPOSITORY}/manifests/absent"),
        format!("/v2/{REPOSITORY}/manifests/{absent}"),
        format!("/v2/{REPOSITORY}/manifests/sha256:none"),
        format!("/v2/{REPOSITORY}/blobs/{absent}"),
        format!("/v2/{REPOSITORY}/blobs/sha256:none"),
        format!("/v2/{REPOSITORY}/referrers/none"),
        "/v2/conformance/absent/tags/list".to_owned(),
        "/v2/conformance/absent/manifests/absent".to_owned(),
        "/v2/UPPER/manifests/absent".to_owned(),
        "/nothing/here".to_owned(),
    ] {
        let asked = async {
            let answer = place.get(&path).await?.one_of(&[400, 404])?;
            answer.says_why().map(drop)
        };
        let found = asked.await;
        findings.push((path, found));
    }
    findings
}

async fn a_push_by_a_digest_that_is_none_is_a_mistake(place: Place) -> Findings {
    let path = format!("/v2/{REPOSITORY}/manifests/sha256:totallywrong");
    let pushed = async {
        let answer = place.ask(Method::PUT, &path, &[]).await?;
        answer.one_of(&[400, 404])?.says_why().map(drop)
    };
    let found = pushed.await;
    vec![(path, found)]
}

async fn what_can_not_be_deleted_is_refused_with_400_or_405(place: Place) -> Findings {
    let mut findings = Findings::new();
    let (manifest, blob) = (place.content.manifests().next(), place.content.blobs().next());
    let (Some(manifest), Some(blob)) = (manifest, blob) else {
        return vec![("content".into(), Err("there is none".into()))];
    };
    for path in [
        format!("/v2/{REPOSITORY}/manifests/{}", manifest.tag),
        format!("/v2/{REPOSITORY}/manifests/{}", manifest.digest),
        format!("/v2/{REPOSITORY}/blobs/{}", blob.digest),
    ] {
        let asked = async {
            place.ask(Method::DELETE, &path, &[]).await?.one_of(&[400, 405])?;
            // And it is still there.
            place
                .ask(Method::HEAD, &path, &[("accept", ACCEPT)])
                .await?
                .is(200)
                .map(drop)
        };
        let found = asked.await;
        findings.push((path, found));
    }
    findings
}
