//! ADD: give a pod its interface.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use rscni_types::types::{CNIResult, Interface, IpConfig};

use super::asked::Asked;
use super::config::{NetConf, Network};
use super::guard::{self, Agent};
use super::{Error, abandoned, bridge, masquerade, release, route, sysctl, veth};
use crate::datapath::tables::LocalPod;
use crate::deadline::Deadline;
use crate::ipam::{AddressBook, Attachment, Range};
use crate::kernel::Kernel;
use crate::kernel::links::Link;
use crate::kernel::netns::Netns;
use crate::mac::MacAddr;
use crate::pod::PodNote;

/// Longest duration of undoing a failed ADD.
pub const UNDO: Duration = Duration::from_secs(5);

/// Adds `attachment` to the network in the namespace at `path`. A failed ADD is undone; where
/// undoing fails as well, the address stays allocated until DEL.
///
/// # Errors
///
/// Any [`Error`] but those of CHECK and STATUS, and [`Error::Unfinished`].
pub async fn add(
    conf: &NetConf,
    attachment: &Attachment,
    path: &Path,
    asked: &Asked,
    agent: &Agent,
    deadline: Deadline,
) -> Result<CNIResult, Error> {
    let network = conf.network()?;
    let previous = conf.previous()?;
    let netns = Netns::open(path)?;
    let host = Kernel::connect_until(deadline)?;
    let pod = Kernel::connect_in(&netns, deadline)?;
    if pod.find_link(&attachment.interface).await?.is_some() {
        return Err(Error::Conflict(format!(
            "{} has an interface {} already",
            path.display(),
            attachment.interface
        )));
    }

    let range = Range::new(network.subnet)?;
    // The lock is held for this block only, so that another ADD need not wait for our devices.
    let address = {
        let book = AddressBook::lock(&conf.ipam_dir(), deadline)?;
        let take = || match asked.address {
            Some(address) => book.claim(&range, address, attachment),
            None => book.allocate(&range, 0, attachment),
        };
        abandoned::or_free(&book, conf, &host, take).await?
    };
    // The address may be in the maps still, because its former pod vanished without DEL while no
    // agent ran.
    release::forget(&[address], agent);
    let place = Place {
        conf,
        network: &network,
        attachment,
        netns: &netns,
        host: &host,
        pod: &pod,
        mac: asked.mac,
        by_kube_proxy: asked.by_kube_proxy,
        agent,
        deadline,
    };
    match place.connect(address).await {
        Ok((ports, pod_end)) => {
            let own = result(&network, address, ports, pod_end, attachment, path);
            Ok(append(previous, own))
        }
        Err(error) => {
            place.undo(address).await;
            Err(error)
        }
    }
}

/// The network, namespace and devices that a pod is connected with.
struct Place<'a> {
    conf: &'a NetConf,
    network: &'a Network,
    attachment: &'a Attachment,
    netns: &'a Netns,
    host: &'a Kernel,
    pod: &'a Kernel,
    /// The MAC address that the pod's end shall have; the kernel chooses one otherwise.
    mac: Option<MacAddr>,
    /// Whether addresses of Services are to be left to kube-proxy.
    by_kube_proxy: bool,
    agent: &'a Agent,
    deadline: Deadline,
}

impl Place<'_> {
    /// Sets up everything that `address` needs. Returns bridge and host end, and the pod's end.
    async fn connect(&self, address: IpAddr) -> Result<([Link; 2], Link), Error> {
        let Self {
            network,
            attachment,
            netns,
            host,
            pod,
            deadline,
            ..
        } = self;
        let bridge = bridge::ensure(host, network).await?;
        let port = veth::make(host, network, &bridge, attachment, netns, self.mac).await?;
        let end = pod.find_link(&attachment.interface).await?.ok_or_else(|| {
            Error::Conflict(format!(
                "{} vanished while it was set up",
                attachment.interface
            ))
        })?;

        // The guard comes first, because the pod can send as soon as its interface is up.
        let guarded = LocalPod {
            ifindex: port.index,
            address,
            mac: end.mac,
            mtu: port.mtu,
            kernel_path: true,
            container: attachment.container.clone(),
        };
        guard::raise(self.agent, &port.name, &guarded, *deadline).await;

        let interface = &attachment.interface;
        netns.run(|| {
            // With this setting the kernel tells the pod's neighbours whenever the pod's MAC
            // address is set.
            sysctl::try_set(&format!("ipv4/conf/{interface}/arp_notify"), "1");
            if address.is_ipv6() {
                // The address is nobody else's, so the pod may use it without detection of
                // duplicates.
                sysctl::try_set(&format!("ipv6/conf/{interface}/accept_dad"), "0");
            }
        })?;
        pod.add_address(end.index, on_link(network.subnet, address))
            .await?;
        pod.set_up(end.index).await?;
        let gateway = network.subnet.addr();
        for asked in &network.routes {
            route::add(pod, &end, asked, gateway).await?;
        }
        if network.ip_masq {
            masquerade::add(attachment, address, &network.networks, *deadline).await?;
        }
        veth::wait_for_port(host, &port).await?;
        // Neighbours that remember the address's former pod learn this pod's MAC address. The call
        // comes after the port is up, because the bridge would drop the announcement before.
        pod.set_mac(&end, end.mac).await?;

        // The note is last, because the agent lets traffic to the pod as soon as it reads the note.
        self.is_still_ours(address)?;
        let note = PodNote {
            addresses: address.into(),
            mac: end.mac,
            container: attachment.container.clone(),
            interface: attachment.interface.clone(),
            masqueraded: network.ip_masq,
            by_kube_proxy: self.cookie_for_kube_proxy(),
        };
        veth::announce(host, &port, &note).await?;
        self.is_still_ours(address)?;
        Ok(([bridge, port], end))
    }

    /// The pod's network namespace, by which programs tell that its Services are kube-proxy's.
    fn cookie_for_kube_proxy(&self) -> Option<u64> {
        let cookie = self.by_kube_proxy.then(|| self.netns.cookie())?;
        cookie
            .inspect_err(|error| tracing::warn!(%error, "Services are not left to kube-proxy"))
            .ok()
    }

    /// Fails if a DEL has taken the address back. A runtime calls DEL for an ADD that takes too
    /// long, and DEL cannot remove devices that ADD makes afterwards.
    fn is_still_ours(&self, address: IpAddr) -> Result<(), Error> {
        if AddressBook::is_held(&self.conf.ipam_dir(), address, self.attachment) {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{address} was taken back while the pod was made, as by a DEL; nothing of the pod stays"
        )))
    }

    /// Undoes a failed ADD, within [`UNDO`] even after the deadline of the ADD. A failure here is
    /// only reported, because the runtime calls DEL next.
    async fn undo(&self, address: IpAddr) {
        let Self {
            conf, attachment, ..
        } = self;
        let deadline = Deadline::after(UNDO);
        release::forget(&[address], self.agent);
        match remove(attachment, deadline).await {
            Ok(Some(port)) => guard::lower(self.agent, &port, address, deadline).await,
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "undoing a failed ADD"),
        }
        // An address whose masquerading stays may not be given to another pod.
        let unmasked = if self.network.ip_masq {
            masquerade::remove(attachment, address, deadline).await
        } else {
            Ok(())
        };
        let released = unmasked
            .and_then(|()| Ok(AddressBook::lock(&conf.ipam_dir(), deadline)?.release(attachment)?));
        if let Err(error) = released {
            tracing::warn!(%error, "undoing a failed ADD");
        }
    }
}

/// Removes the host end over a connection of its own, because the deadline of the failed ADD's
/// connection may have passed.
async fn remove(attachment: &Attachment, deadline: Deadline) -> Result<Option<Link>, Error> {
    veth::remove(&Kernel::connect_until(deadline)?, attachment).await
}

/// The pod's address with the prefix length of the subnet that it can reach without a gateway.
pub fn on_link(subnet: IpNet, address: IpAddr) -> IpNet {
    IpNet::new_assert(address, subnet.prefix_len())
}

fn result(
    network: &Network,
    address: IpAddr,
    ports: [Link; 2],
    pod_end: Link,
    attachment: &Attachment,
    path: &Path,
) -> CNIResult {
    let interface = |name: String, mac: MacAddr, sandbox| Interface {
        name,
        mac: mac.to_string(),
        mtu: None,
        sandbox,
        socket_path: None,
        pci_id: None,
    };
    let [bridge, port] = ports.map(|link| interface(link.name, link.mac, None));
    let sandbox = Some(path.display().to_string());
    CNIResult {
        interfaces: vec![
            bridge,
            port,
            interface(attachment.interface.clone(), pod_end.mac, sandbox),
        ],
        ips: vec![IpConfig {
            interface: Some(2),
            address: on_link(network.subnet, address),
            gateway: Some(network.subnet.addr()),
        }],
        routes: network.routes.clone(),
        dns: network.dns.clone(),
    }
}

/// Puts this plugin's result behind the result of the plugins before it in the list, as CNI asks of
/// every plugin.
fn append(previous: Option<CNIResult>, mut own: CNIResult) -> CNIResult {
    let Some(mut all) = previous else {
        return own;
    };
    let offset = u32::try_from(all.interfaces.len()).unwrap_or(u32::MAX);
    for ip in &mut own.ips {
        ip.interface = ip.interface.map(|index| index.saturating_add(offset));
    }
    all.interfaces.append(&mut own.interfaces);
    all.ips.append(&mut own.ips);
    all.routes.append(&mut own.routes);
    all.dns = own.dns.or(all.dns);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, address: &str) -> CNIResult {
        CNIResult {
            interfaces: vec![Interface {
                name: name.into(),
                mac: String::new(),
                mtu: None,
                sandbox: None,
                socket_path: None,
                pci_id: None,
            }],
            ips: vec![IpConfig {
                interface: Some(0),
                address: address.parse().expect("an address"),
                gateway: None,
            }],
            ..CNIResult::default()
        }
    }

    #[test]
    fn interfaces_keep_their_addresses_behind_those_of_others() {
        let all = append(Some(one("lo", "127.0.0.1/8")), one("eth0", "10.244.1.2/24"));
        let named: Vec<_> = all
            .ips
            .iter()
            .map(|ip| {
                let index = ip.interface.and_then(|index| usize::try_from(index).ok());
                (
                    all.interfaces[index.expect("an index")].name.as_str(),
                    ip.address.to_string(),
                )
            })
            .collect();
        assert_eq!(
            named,
            [
                ("lo", "127.0.0.1/8".into()),
                ("eth0", "10.244.1.2/24".to_owned())
            ]
        );
    }

    #[test]
    fn the_address_has_the_length_of_the_subnet() {
        let subnet = "10.244.1.1/24".parse().expect("a subnet");
        assert_eq!(
            on_link(subnet, [10, 244, 1, 7].into()).to_string(),
            "10.244.1.7/24"
        );
    }
}
