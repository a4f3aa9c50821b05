//! "Listing Referrers", and the "Referrers Tag Schema" where a registry has no list.

use serde_json::{Value, json};

use crate::client::{Answer, Place};
use crate::content::{OCI_INDEX, REPOSITORY, SIGNATURE};
use crate::{Findings, ensure, requirements};

requirements![
    referrers_come_as_an_index_with_200,
    each_referrer_has_its_type_and_its_annotations,
    referrers_of_one_type_come_alone_and_the_filter_is_named,
    a_type_that_nothing_has_leaves_an_empty_list,
    what_nothing_refers_to_has_an_empty_list,
    a_subject_that_is_not_there_has_its_referrers,
    a_subject_that_is_no_digest_is_400,
    referrers_are_found_by_the_list_or_else_by_the_tag,
];

fn one(found: Result<(), String>) -> Findings {
    vec![(REPOSITORY.to_owned(), found)]
}

async fn ask(place: &Place, subject: &str, query: &str) -> Result<Answer, String> {
    place
        .get(&format!("/v2/{REPOSITORY}/referrers/{subject}{query}"))
        .await
}

async fn list(place: &Place, subject: &str, query: &str) -> Result<(Vec<Value>, Answer), String> {
    let answer = ask(place, subject, query)
        .await?
        .is(200)?
        .has("content-type", OCI_INDEX)?;
    let index = answer.json()?;
    ensure!(
        index["schemaVersion"] == 2 && index["mediaType"] == OCI_INDEX,
        "no index: {index}"
    );
    let listed = index["manifests"].as_array().cloned();
    Ok((listed.ok_or_else(|| format!("no list: {index}"))?, answer))
}

/// Those that are missing, and those that are too many.
fn differs(listed: &[Value], wanted: &[&str]) -> Result<(), String> {
    let mut found: Vec<_> = listed.iter().filter_map(|one| one["digest"].as_str()).collect();
    let mut wanted = wanted.to_vec();
    found.sort_unstable();
    wanted.sort_unstable();
    ensure!(found == wanted, "{found:?} instead of {wanted:?}");
    Ok(())
}

fn all(place: &Place) -> Vec<&str> {
    let referrers = place.content.referrers.iter();
    referrers.map(|(digest, ..)| digest.as_str()).collect()
}

async fn referrers_come_as_an_index_with_200(place: Place) -> Findings {
    let listed = async {
        let (listed, answer) = list(&place, &place.content.subject, "").await?;
        ensure!(
            !answer.headers.contains_key("oci-filters-applied"),
            "nothing was filtered"
        );
        differs(&listed, &all(&place))
    };
    one(listed.await)
}

async fn each_referrer_has_its_type_and_its_annotations(place: Place) -> Findings {
    let mut findings = Findings::new();
    let listed = list(&place, &place.content.subject, "").await;
    for (digest, artifact_type, note) in &place.content.referrers {
        let described = |listed: &[Value]| {
            let descriptor = listed.iter().find(|one| one["digest"] == **digest);
            let descriptor = descriptor.ok_or_else(|| "it is not listed".to_owned())?;
            ensure!(descriptor["artifactType"] == json!(artifact_type), "{descriptor}");
            ensure!(
                descriptor["annotations"]["org.example.note"] == *note,
                "{descriptor}"
            );
            ensure!(
                descriptor["size"].is_u64() && descriptor["mediaType"].is_string(),
                "{descriptor}"
            );
            Ok(())
        };
        let found = listed
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|(listed, _)| described(listed));
        findings.push(((*note).to_owned(), found));
    }
    findings
}

async fn referrers_of_one_type_come_alone_and_the_filter_is_named(place: Place) -> Findings {
    let mut findings = Findings::new();
    for artifact_type in [SIGNATURE, "application/vnd.example.sbom.v1"] {
        let listed = async {
            let query = format!("?artifactType={artifact_type}");
            let (listed, answer) = list(&place, &place.content.subject, &query).await?;
            answer.has("oci-filters-applied", "artifactType")?;
            let of_type = place
                .content
                .referrers
                .iter()
                .filter(|(_, kind, _)| *kind == Some(artifact_type));
            let wanted: Vec<_> = of_type.map(|(digest, ..)| digest.as_str()).collect();
            differs(&listed, &wanted)
        };
        findings.push((artifact_type.to_owned(), listed.await));
    }
    findings
}

async fn a_type_that_nothing_has_leaves_an_empty_list(place: Place) -> Findings {
    let listed = async {
        let (listed, answer) =
            list(&place, &place.content.subject, "?artifactType=application%2Fnone").await?;
        answer.has("oci-filters-applied", "artifactType")?;
        differs(&listed, &[])
    };
    one(listed.await)
}

async fn what_nothing_refers_to_has_an_empty_list(place: Place) -> Findings {
    let listed = async {
        let absent = format!("sha256:{}", "0".repeat(64));
        let (listed, _) = list(&place, &absent, "").await?;
        differs(&listed, &[])
    };
    one(listed.await)
}

async fn a_subject_that_is_not_there_has_its_referrers(place: Place) -> Findings {
    let listed = async {
        let (listed, _) = list(&place, &place.content.absent_subject, "").await?;
        ensure!(listed.len() == 1, "{listed:?}");
        Ok(())
    };
    one(listed.await)
}

async fn a_subject_that_is_no_digest_is_400(place: Place) -> Findings {
    let mut findings = Findings::new();
    for subject in ["none", "sha256:none", "sha256:0"] {
        let asked = async { ask(&place, subject, "").await?.is(400)?.says_why().map(drop) };
        findings.push((subject.to_owned(), asked.await));
    }
    findings
}

/// Finds referrers like clients do ("Unavailable Referrers API").
async fn referrers_are_found_by_the_list_or_else_by_the_tag(place: Place) -> Findings {
    let found = async {
        let subject = &place.content.subject;
        let mut answer = ask(&place, subject, "").await?.one_of(&[200, 404])?;
        if answer.status == 404 {
            let tag = subject.replace(':', "-");
            answer = place
                .get(&format!("/v2/{REPOSITORY}/manifests/{tag}"))
                .await?
                .is(200)?;
        }
        let answer = answer.has("content-type", OCI_INDEX)?;
        let index = answer.json()?;
        differs(index["manifests"].as_array().unwrap_or(&Vec::new()), &all(&place))
    };
    one(found.await)
}
