//! What a cluster's Nodes may say, and what may be in the file that an agent leaves for the next.

use overlay_user::store::kube::offline::{self, Judged, NodeNews};

use super::shown;

/// This node.
const OWN: &str = "n1";
const PREFIX: &str = "flannel.alpha.coreos.com";
const NETWORK: &str = r#"{"Network":"10.244.0.0/16"}"#;

/// Lines: a Node as JSON, or `-` and the name of one that is gone. Who hears of each knows what a
/// list says at the end, and knows nothing once all are gone.
pub fn nodes(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().take(100);
    let news: Vec<NodeNews<'_>> = lines
        .map(|line| {
            line.strip_prefix('-')
                .map_or(NodeNews::Is(line), NodeNews::Gone)
        })
        .collect();
    let [followed, listed] = offline::followed(OWN, PREFIX, news.iter().copied());
    assert_eq!(followed, listed, "a change was missed");
    sound(&followed);

    let names = news.iter().filter_map(|news| match news {
        NodeNews::Is(text) => {
            let node: serde_json::Value = serde_json::from_str(text).ok()?;
            Some(
                node["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            )
        }
        NodeNews::Gone(_) => None,
    });
    let names: Vec<String> = names.collect();
    let gone = names.iter().map(|name| NodeNews::Gone(name));
    let [followed, listed] = offline::followed(OWN, PREFIX, news.iter().copied().chain(gone));
    for told in [followed, listed] {
        assert_eq!((told.leases.len(), told.rejected.len()), (0, 0), "{told:?}");
    }
}

/// The file's bytes.
pub fn memory(data: &[u8]) {
    match offline::remembered(OWN, PREFIX, NETWORK, data) {
        Ok(told) => sound(&told),
        Err(why) => shown(&why),
    }
}

fn sound(told: &Judged) {
    for lease in told.leases.sorted() {
        let json = lease.attributes.to_json().expect("JSON");
        assert!(
            json.len() < 20_000,
            "{} bytes of one node are kept",
            json.len()
        );
    }
    for rejected in told.rejected.sorted() {
        shown(&rejected.subject);
        shown(&rejected.reason);
    }
}
