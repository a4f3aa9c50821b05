//! The plugin of kubectl, whose port-forwards go through the API server and the kubelet.

use serde_json::Value;
use testbed::binaries::workspace;

use crate::cluster::Cluster;
use crate::mirror::{MIRRORS, NAME};

impl Cluster {
    async fn plugin(&self, arguments: &[&str]) -> String {
        let program = workspace()
            .join("target/image/kubectl-rmir")
            .display()
            .to_string();
        self.run(&[&[program.as_str()], arguments, &[MIRRORS]].concat())
            .await
    }

    async fn plugin_json(&self, arguments: &[&str]) -> Value {
        let output = self.plugin(&[arguments, &["-o", "json"]].concat()).await;
        serde_json::from_str(&output).unwrap()
    }

    /// A cached image is listed, pulled as a hit, purged, prewarmed and pulled as a hit again, through port-forwards; the
    /// address of the Pod does not answer on the port of actions.
    pub(crate) async fn plugin_reaches_pods_by_port_forward(&self) {
        let image = self.cached_image().await;
        let pulled = self.plugin_json(&["pull", &image]).await;
        assert_eq!(
            caches(&pulled, "HIT"),
            pulled["parts"].as_array().unwrap().len(),
            "{pulled}"
        );
        let purged = self.plugin_json(&["purge", &image]).await;
        assert_eq!(purged["purged"][0]["tags"], 1, "{purged}");
        let prewarmed = self.plugin_json(&["prewarm", &image, "--platform", "all"]).await;
        assert!(
            prewarmed["prewarmed"][0]["fetched"].as_u64() > Some(0),
            "{prewarmed}"
        );
        let pulled = self.plugin_json(&["pull", &image]).await;
        assert_eq!(
            caches(&pulled, "HIT"),
            pulled["parts"].as_array().unwrap().len(),
            "{pulled}"
        );
        let status = self.plugin_json(&["status", "hub"]).await;
        assert_eq!(status["ready"], true, "{status}");
        assert!(status["cache"][0]["bytes"].as_u64() > Some(0), "{status}");
        let logs = self.plugin(&["logs", "hub", "--tail", "50"]).await;
        assert!(logs.contains("image prewarmed by an action"), "{logs}");
        let path = "jsonpath={.items[0].status.podIP}";
        let pods = [
            "get",
            "pods",
            MIRRORS,
            "-l",
            "app.kubernetes.io/instance=hub",
            "-o",
            path,
        ];
        let address = self.kubectl(&pods).await;
        let url = format!("http://{address}:5003/images");
        assert!(
            self.node
                .run(&["curl", "-sf", "--max-time", "5", &url])
                .await
                .is_err()
        );
    }

    /// The name of the image that the first Pod pulled.
    async fn cached_image(&self) -> String {
        let images = self.plugin_json(&["images"]).await;
        let first = images["images"].as_array().and_then(|images| images.first());
        let name = |image: &Value| {
            Some(format!(
                "{}:{}",
                image["repository"].as_str()?,
                image["tag"].as_str()?
            ))
        };
        first
            .and_then(name)
            .unwrap_or_else(|| panic!("no tag of {NAME}: {images}"))
    }
}

fn caches(pulled: &Value, status: &str) -> usize {
    let parts = pulled["parts"].as_array().unwrap().iter();
    parts.filter(|part| part["cache"] == status).count()
}
