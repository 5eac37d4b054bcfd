use tempfile::TempDir;

use super::super::entry::Term;
use super::super::kube;
use super::super::news::Update;
use super::*;

const TTL: Duration = Duration::from_secs(60);
const KEY: &str = "10.244.1.0-24";

/// Enough for any request to a directory on this machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn directory() -> (TempDir, Registry) {
    let directory = tempfile::tempdir().expect("a directory");
    let location = Location::Dir(directory.path().to_owned());
    let registry = Registry::open(location, TTL).expect("a registry");
    (directory, registry)
}

/// A registry in a cluster whose API server does not answer, because no process listens on port 1.
fn unreachable_cluster() -> Registry {
    let options = kube::Options {
        api_url: Some("http://127.0.0.1:1".to_owned()),
        kubeconfig: None,
        annotation_prefix: "flannel.alpha.coreos.com".to_owned(),
        config_path: "/nonexistent".into(),
        identity: Some(kube::Identity::Node("n1".to_owned())),
        memory: None,
    };
    Registry::open(Location::Kube(options), TTL).expect("a registry")
}

async fn values(registry: &Registry) -> Vec<Vec<u8>> {
    let listing = registry.list().await.expect("a list");
    listing.entries.into_iter().map(|it| it.value).collect()
}

#[tokio::test]
async fn an_entry_is_guarded_from_beginning_to_end() {
    let (_directory, registry) = directory();
    let entry = registry.create(KEY, "one").await.expect("an answer");
    let entry = entry.expect("a new entry");
    assert_eq!(entry.key, KEY);
    let again = registry.create(KEY, "another").await.expect("an answer");
    assert_eq!(again, None);
    assert_eq!(values(&registry).await, [b"one"]);

    let changed = registry.replace(&entry, "two").await.expect("an answer");
    let changed = changed.expect("a changed entry");
    assert_eq!(values(&registry).await, [b"two"]);
    let late = registry.replace(&entry, "three").await.expect("an answer");
    assert_eq!(late, None);
    assert_eq!(values(&registry).await, [b"two"]);

    assert!(registry.renew(&changed).await.expect("an answer"));
    assert!(!registry.remove(&entry).await.expect("an answer"));
    assert!(registry.remove(&changed).await.expect("an answer"));
    assert!(values(&registry).await.is_empty());
    assert!(!registry.renew(&changed).await.expect("an answer"));
}

#[tokio::test]
async fn a_watch_begins_with_everything() {
    let (_directory, registry) = directory();
    registry.create(KEY, "one").await.expect("an answer");
    let (changes, mut told) = mpsc::channel(1);
    let watch = async { registry.watch(changes).await };
    let first = async {
        let first = tokio::time::timeout(PATIENCE, told.recv()).await;
        drop(told);
        first
    };
    let (first, ()) = tokio::join!(first, watch);
    let Ok(Some(EntryChange::All(listing))) = first else {
        panic!("{first:?}")
    };
    assert_eq!(listing.entries.len(), 1);
}

#[tokio::test]
async fn a_directory_holds_the_configuration_and_assigns_nothing() {
    let (directory, registry) = directory();
    std::fs::write(directory.path().join("config"), "text").expect("a file");
    assert_eq!(registry.config().await.expect("a configuration"), "text");
    assert!(!registry.assigns());
    assert!(registry.assigned().await.expect("an answer").is_none());
    let wanted = registry.node_public_ip().await.expect("an answer");
    assert_eq!(wanted, None);
    assert!(registry.notify(&Notice::Available).await.is_ok());
}

#[tokio::test]
async fn a_cluster_is_asked_what_it_assigns() {
    let registry = unreachable_cluster();
    assert!(registry.assigns());
    assert!(registry.assigned().await.is_err());
    assert!(registry.node_public_ip().await.is_err());
    assert!(registry.notify(&Notice::Available).await.is_err());
}

#[tokio::test]
async fn a_cluster_is_never_asked_to_create_renew_or_remove() {
    let registry = unreachable_cluster();
    let held = Entry::new(KEY.to_owned(), "one", 1, Term::Reserved);
    assert_eq!(
        registry.create(KEY, "one").await.expect("no question"),
        None
    );
    assert!(registry.renew(&held).await.expect("no question"));
    assert!(!registry.remove(&held).await.expect("no question"));
}

#[test]
fn a_term_ends_when_its_time_is_over() {
    let before = SystemTime::now();
    let end = Registry::term_end(TTL).expect("an end");
    assert!((before + TTL..=SystemTime::now() + TTL).contains(&end));
    assert_eq!(Registry::term_end(Duration::MAX), None);
}

#[tokio::test]
async fn a_watch_of_services_begins_with_everything() {
    let (_directory, registry) = directory();
    let (news, mut told) = mpsc::channel(1);
    let watch = async { registry.watch_services(news).await };
    let first = async {
        let first = tokio::time::timeout(PATIENCE, told.recv()).await;
        drop(told);
        first
    };
    let (first, ()) = tokio::join!(first, watch);
    let first = first.expect("an answer").map(|it| it.update);
    assert!(matches!(first, Some(Update::Begin)), "{first:?}");
}

#[tokio::test]
async fn only_a_cluster_knows_where_its_nodes_are() {
    assert!(unreachable_cluster().this_node().is_some());
    assert!(directory().1.this_node().is_none());
}
