//! What lies on the node: `subnet.env`, the files of pods' addresses, the notes on their devices.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use overlay_user::config::SubnetEnv;
use overlay_user::ipam::{Holder, Range};
use overlay_user::pod::PodNote;

use super::explained;

/// `subnet.env`.
pub fn subnet_env(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let read = |text: &str| SubnetEnv::parse(Path::new("subnet.env"), text);
    let env = match read(text) {
        Ok(env) => env,
        Err(error) => return explained(&error),
    };
    // Lists come out sorted by family, and only those of families that the node has; then nothing
    // changes.
    let Ok(again) = read(&env.to_string()) else {
        assert!(
            env.nets.iter().all(|nets| nets.networks.is_empty()),
            "{env:?} cannot be read back"
        );
        return;
    };
    assert_eq!(again, env);
    for (nets, is_v4) in [(env.nets.v4(), true), (env.nets.v6(), false)] {
        let mut all = nets
            .into_iter()
            .flat_map(|it| it.networks.iter().chain([&it.subnet]));
        assert!(all.all(|net| net.addr().is_ipv4() == is_v4), "{env:?}");
    }
}

/// A file of an address: its first line the subnet, its second the address given out last, then its
/// content.
pub fn pod_address(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\n');
    let (subnet, last, content) = (parts.next(), parts.next(), parts.next());
    if let Holder::Attachment(attachment) = Holder::parse(content.unwrap_or_default()) {
        let holder = Holder::parse(&attachment.file_content());
        assert_eq!(holder, Holder::Attachment(attachment.clone()));
        assert!(holder.is(&attachment));
    }
    let Some(Ok(subnet)) = subnet.map(str::parse::<IpNet>) else {
        return;
    };
    let range = match Range::new(subnet) {
        Ok(range) => range,
        Err(error) => return explained(&error),
    };
    let last: Option<IpAddr> = last.and_then(|last| last.trim().parse().ok());
    let mut seen = 0;
    for address in range.after(last).take(300) {
        assert!(
            range.contains(address) && subnet.contains(&address),
            "{address}"
        );
        assert_ne!(address, subnet.addr(), "the gateway's");
        seen += 1;
    }
    assert_eq!(seen, range.capacity().min(300), "each address once");
}

/// The alias of a device.
pub fn pod_note(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match text.parse::<PodNote>() {
        Ok(note) => assert_eq!(note.to_string().parse(), Ok(note)),
        Err(error) => explained(&error),
    }
}
