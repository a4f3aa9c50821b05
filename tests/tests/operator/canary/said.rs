//! The output of programs and the text of objects.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kube::ResourceExt;
use kube::api::ListParams;
use testbed::control_plane::Namespaced;

use super::CANARY;
use crate::bench::Bench;

/// Texts, each with its origin.
#[derive(Default)]
pub(super) struct Said(pub(super) Vec<(String, String)>);

impl Said {
    pub(super) fn by(&mut self, whom: impl Into<String>, what: String) {
        self.0.push((whom.into(), what));
    }

    pub(super) async fn url(&mut self, url: &str) {
        if let Ok(answer) = reqwest::get(url).await {
            self.by(url, answer.text().await.unwrap_or_default());
        }
    }

    pub(super) async fn objects<K: Namespaced>(&mut self, bench: &Bench) {
        for object in bench.api::<K>().list(&ListParams::default()).await.unwrap() {
            let whom = format!("{} {}", K::kind(&()), object.name_any());
            self.by(whom, serde_json::to_string(&object).unwrap());
        }
    }

    /// No text has the canary, plainly or in Base64, wherever in a text that begins.
    pub(super) fn has_no_canary(&self) {
        let shifted = (0..3).map(|shift| {
            let text = format!("{}{CANARY}", "x".repeat(shift));
            let encoded = BASE64_STANDARD.encode(text);
            // The first and the last characters depend on the neighbours.
            encoded.trim_end_matches('=')[4..encoded.len() - 6].to_owned()
        });
        let forbidden: Vec<_> = [CANARY.to_owned()].into_iter().chain(shifted).collect();
        for (whom, what) in &self.0 {
            for canary in &forbidden {
                if let Some(at) = what.find(canary.as_str()) {
                    let from = what[..at].rfind('\n').map_or(0, |line| line + 1);
                    let line: String = what[from..].chars().take(400).collect();
                    panic!("{whom}: {line}");
                }
            }
            assert!(!what.contains("panicked"), "{whom}: {what}");
        }
    }
}
