//! Services and EndpointSlices, which whoever may write one namespace of a cluster, or a file,
//! decides about.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlay_user::per_family::PerFamily;
use overlay_user::service::api::{EndpointSlice, Service};
use overlay_user::service::{Catalog, Kind, Locality, ObjectName};

use super::shown;

/// Lines of `s` or `e`, a key, a space, JSON: a Service or an EndpointSlice of that name. Without
/// JSON it is gone.
pub fn services(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines: Vec<_> = text.lines().take(200).filter_map(line).collect();
    let mut catalog = Catalog::new(here());
    let mut last = BTreeMap::new();
    for (kind, name, json) in &lines {
        tell(&mut catalog, *kind, name, json);
        sound(&catalog);
        last.insert((*kind, name.clone()), *json);
    }
    let mut fresh = Catalog::new(here());
    for ((kind, name), json) in last.iter().rev() {
        tell(&mut fresh, *kind, name, json);
    }
    assert!(catalog.table() == fresh.table(), "what came before counts");
    assert!(
        catalog.refused() == fresh.refused(),
        "what came before is refused"
    );
}

fn here() -> Locality {
    Locality {
        node: "n1".into(),
        zone: Some("a".into()),
        addresses: vec!["192.168.0.1".parse().expect("an address")],
        pods: PerFamily::V4("10.244.0.0/16".parse().expect("a network")),
    }
}

fn line(line: &str) -> Option<(Kind, ObjectName, &str)> {
    let (key, json) = line.split_once(' ').unwrap_or((line, ""));
    let kind = match key.chars().next()? {
        's' => Kind::Service,
        'e' => Kind::Slice,
        _ => return None,
    };
    Some((kind, ObjectName::from_key(&key[1..]), json))
}

fn tell(catalog: &mut Catalog, kind: Kind, name: &ObjectName, json: &str) {
    let why = |error: serde_json::Error| error.to_string();
    match kind {
        Kind::Service if json.is_empty() => catalog.remove_service(name),
        Kind::Slice if json.is_empty() => catalog.remove_slice(name),
        Kind::Service => {
            let object = serde_json::from_str::<Service>(json).map_err(why);
            catalog.put_service(name, object.as_ref().map_err(Clone::clone));
        }
        Kind::Slice => {
            let object = serde_json::from_str::<EndpointSlice>(json).map_err(why);
            catalog.put_slice(name, object.as_ref().map_err(Clone::clone));
        }
    }
    catalog.settle();
}

fn sound(catalog: &Catalog) {
    for (subject, refusals) in catalog.refused().iter() {
        shown(subject);
        refusals.iter().for_each(|refusal| shown(refusal));
    }
    let pods = here().pods;
    for (frontend, serving) in catalog.table().iter() {
        let address = frontend.address;
        assert!(is_ordinary(address), "{frontend}");
        let is_pods = pods
            .like(address)
            .is_some_and(|pods| pods.contains(&address));
        assert!(!is_pods, "{frontend} is a pod's");
        assert_ne!(frontend.port, 0);
        assert!(serving.servers.is_sorted_by(|one, other| one < other));
        for server in &serving.servers {
            assert!(is_ordinary(server.ip()), "{server}");
            assert_ne!(server.port(), 0);
            assert_eq!(server.is_ipv4(), address.is_ipv4());
        }
    }
}

fn is_ordinary(address: IpAddr) -> bool {
    !address.is_loopback() && !address.is_multicast() && !address.is_unspecified()
}
