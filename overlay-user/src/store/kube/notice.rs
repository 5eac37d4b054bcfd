//! Notices for the cluster's owner on the Node: a condition, and events.

use jiff::Timestamp;
use kube::core::Request;
use kube::core::params::{GetParams, Patch, PostParams};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Kube, MANAGER, manager, wrong};
use crate::store::{Error, Notice};

/// Kubernetes refuses an event with a longer message, in bytes.
const LONGEST: usize = 1024;
/// Where kubelets put the events of their Nodes, which have no namespace.
const NAMESPACE: &str = "default";
const CONDITION: &str = "NetworkUnavailable";

/// A Node with what is known of its health.
#[derive(Deserialize)]
struct Health {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

/// See the API's `NodeCondition`.
#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl Kube {
    /// Puts a notice on this node's Node.
    pub async fn notify(&self, notice: &Notice) -> Result<(), Error> {
        match notice {
            // flannel's words: people and scripts look for them.
            Notice::Available => {
                let message = "Flannel is running on this node";
                self.set_condition("False", "FlannelIsUp", message).await
            }
            Notice::Unavailable { reason, message } => {
                self.set_condition("True", reason, message).await
            }
            Notice::Event { reason, message } => self.post_event(reason, message).await,
        }
    }

    async fn set_condition(&self, status: &str, reason: &str, message: &str) -> Result<(), Error> {
        let name = self.name().await?;
        let call = || format!("setting the condition {CONDITION} of node {name}");
        let request = self
            .nodes()
            .get(name, &GetParams::default())
            .map_err(|error| wrong(call(), &error))?;
        let known: Health = self
            .api
            .call(request)
            .await
            .map_err(|failure| failure.of(call()))?;
        let mut conditions = known.status.conditions.into_iter();
        let now = now();
        let mut condition = json!({
            "type": CONDITION, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now,
        });
        match conditions.find(|condition| condition.kind == CONDITION) {
            Some(known) if known.status == status => {
                if known.reason == reason && known.message == message {
                    return Ok(());
                }
            }
            _ => condition["lastTransitionTime"] = now.into(),
        }
        // A strategic merge knows conditions by their types.
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        let request = self
            .nodes()
            .patch_subresource("status", name, &manager(), &patch)
            .map_err(|error| wrong(call(), &error))?;
        let done = self.api.call::<Value>(request).await;
        done.map(drop).map_err(|failure| failure.of(call()))
    }

    async fn post_event(&self, reason: &str, message: &str) -> Result<(), Error> {
        let name = self.name().await?;
        let call = || format!("posting an event of node {name}");
        let now = now();
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"generateName": format!("{name}."), "namespace": NAMESPACE},
            // kubectl finds a Node's events by its name in place of the UID, as the kubelet puts
            // it.
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": name, "uid": name},
            "reason": reason, "message": cut(message), "type": "Warning",
            "source": {"component": MANAGER, "host": name},
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        });
        let request = Request::new(format!("/api/v1/namespaces/{NAMESPACE}/events"))
            .create(&PostParams::default(), event.to_string().into_bytes())
            .map_err(|error| wrong(call(), &error))?;
        let done = self.api.call::<Value>(request).await;
        done.map(drop).map_err(|failure| failure.of(call()))
    }
}

/// The moment, in whole seconds.
fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string()
}

/// As much of a message as an event takes.
fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(LONGEST)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = format!("x{}", "ä".repeat(LONGEST));
        assert_eq!(cut(&long).len(), LONGEST - 1);
    }
}
