//! CHECK and STATUS: is a pod's network as ADD left it, and would an ADD work.

use std::path::Path;

use ipnet::IpNet;
use rscni_types::types::{CNIResult, Interface};

use super::config::{NetConf, Network};
use super::{Error, abandoned, veth};
use crate::deadline::Deadline;
use crate::ipam::{AddressBook, Attachment, Range};
use crate::kernel::Kernel;
use crate::kernel::links::Link;
use crate::kernel::netns::Netns;
use crate::pod::PodNote;

/// Compares the pod's network with the result that ADD reported.
///
/// # Errors
///
/// [`Error::Changed`] with the first difference, [`Error::Config`] without a result to compare
/// with.
pub async fn check(
    conf: &NetConf,
    attachment: &Attachment,
    path: &Path,
    deadline: Deadline,
) -> Result<(), Error> {
    let network = conf.network()?;
    let result = conf
        .previous()?
        .ok_or_else(|| Error::Config("CHECK needs prevResult, the result of ADD".into()))?;
    let expected = Expected::new(&result, attachment)?;

    let netns = Netns::open(path)?;
    let pod = Kernel::connect_in(&netns, deadline)?;
    let end = present(
        pod.find_link(&attachment.interface).await?,
        &attachment.interface,
    )?;
    expected.check_end(&pod, &end, &network).await?;

    let host = Kernel::connect_until(deadline)?;
    let bridge = present(host.find_link(&network.bridge).await?, &network.bridge)?;
    if network.is_gateway
        && !host
            .addresses_of(bridge.index)
            .await?
            .contains(&network.subnet)
    {
        return changed(format!(
            "{} lacks the address {}",
            bridge.name, network.subnet
        ));
    }
    expected
        .check_port(&host, &bridge, &network, attachment)
        .await?;

    let held = AddressBook::lock(&conf.ipam_dir(), deadline)?.held_by(attachment)?;
    match expected
        .addresses
        .iter()
        .find(|address| !held.contains(&address.addr()))
    {
        Some(address) => changed(format!(
            "{} is not registered for {attachment} in {}",
            address.addr(),
            conf.ipam_dir().display()
        )),
        None => Ok(()),
    }
}

/// Checks the preconditions of an ADD.
///
/// # Errors
///
/// [`Error::Unavailable`] with the cause.
pub async fn status(conf: &NetConf, deadline: Deadline) -> Result<(), Error> {
    let Err(error) = room(conf, deadline).await else {
        return Ok(());
    };
    Err(Error::Unavailable {
        source: Box::new(error),
        limited: pods_are_cut_off(conf, deadline).await.unwrap_or(false),
    })
}

/// Checks that the next ADD would find an address.
async fn room(conf: &NetConf, deadline: Deadline) -> Result<(), Error> {
    let range = Range::new(conf.network()?.subnet)?;
    let dir = conf.ipam_dir();
    if !dir.exists() {
        return Ok(());
    }
    let book = AddressBook::lock(&dir, deadline)?;
    let entries = book.entries()?;
    let taken = entries.iter().filter(|(it, _)| range.contains(*it)).count();
    if u128::try_from(taken).is_ok_and(|taken| taken < range.capacity()) {
        return Ok(());
    }
    let host = Kernel::connect_until(deadline)?;
    let abandoned = abandoned::find(&book, conf, &host).await?;
    if abandoned.iter().any(|it| range.contains(*it)) {
        return Ok(());
    }
    Err(crate::ipam::Error::Exhausted { range, dir }.into())
}

/// Whether there are pods on this node whose bridge is down or missing.
async fn pods_are_cut_off(conf: &NetConf, deadline: Deadline) -> Result<bool, Error> {
    let host = Kernel::connect_until(deadline)?;
    let links = host.all_links().await?;
    let mut pods = links.iter().filter(|link| veth::note(link).is_some());
    Ok(match links.iter().find(|link| link.name == conf.bridge()) {
        Some(bridge) => !bridge.is_up && pods.any(|pod| pod.master == Some(bridge.index)),
        None => pods.any(|pod| pod.master.is_none()),
    })
}

/// The part of ADD's result about one attachment.
struct Expected<'a> {
    result: &'a CNIResult,
    interface: &'a Interface,
    addresses: Vec<IpNet>,
}

impl<'a> Expected<'a> {
    fn new(result: &'a CNIResult, attachment: &Attachment) -> Result<Self, Error> {
        let in_pod = |interface: &Interface| {
            interface.name == attachment.interface && interface.sandbox.is_some()
        };
        let Some(index) = result.interfaces.iter().position(in_pod) else {
            return Err(Error::Config(format!(
                "prevResult has no {}",
                attachment.interface
            )));
        };
        let is_ours = |ip: Option<u32>| ip.is_some_and(|ip| usize::try_from(ip) == Ok(index));
        let ours = result.ips.iter().filter(|ip| is_ours(ip.interface));
        let addresses = ours.map(|ip| ip.address).collect();
        Ok(Self {
            result,
            interface: &result.interfaces[index],
            addresses,
        })
    }

    /// The pod's end: MAC, addresses, routes.
    async fn check_end(&self, pod: &Kernel, end: &Link, network: &Network) -> Result<(), Error> {
        let name = &end.name;
        if !end.is_up {
            return changed(format!("{name} is down"));
        }
        if !end
            .mac
            .to_string()
            .eq_ignore_ascii_case(&self.interface.mac)
        {
            return changed(format!(
                "{name} has the MAC address {}, not {}",
                end.mac, self.interface.mac
            ));
        }
        let addresses = pod.addresses_of(end.index).await?;
        if let Some(lost) = self
            .addresses
            .iter()
            .find(|address| !addresses.contains(address))
        {
            return changed(format!("{name} lacks the address {lost}"));
        }
        let routes = pod.routes_through(end).await?;
        // Later plugins of the list may have changed our routes; then the result says so too.
        for route in &self.result.routes {
            let gateway = route.gw.unwrap_or(network.subnet.addr());
            if !routes.contains(&(route.dst.trunc(), Some(gateway))) {
                return changed(format!(
                    "{name} lacks the route to {} via {gateway}",
                    route.dst
                ));
            }
        }
        Ok(())
    }

    /// The host's end: port of the bridge, and the note for the agent.
    async fn check_port(
        &self,
        host: &Kernel,
        bridge: &Link,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<(), Error> {
        let own = veth::host_name(attachment);
        let on_host =
            |interface: &&Interface| interface.sandbox.is_none() && interface.name != bridge.name;
        // flannel's own plugin gives another name, and writes no note. Plugins before us may have
        // devices as well.
        let candidates = self.result.interfaces.iter().filter(on_host);
        let mut names = candidates.map(|interface| &interface.name);
        let name = if names.clone().any(|name| *name == own) {
            &own
        } else {
            names.find(|name| name.starts_with("veth")).unwrap_or(&own)
        };
        let port = present(host.find_link(name).await?, name)?;
        if port.master != Some(bridge.index) {
            return changed(format!("{name} is not a port of {}", bridge.name));
        }
        if port.hairpin != network.hairpin {
            return changed(format!("hairpin mode of {name} is not {}", network.hairpin));
        }
        if *name == own {
            // The note's MAC address is not compared: later plugins of the list may have set
            // another, which the agent finds by itself.
            let is_of_pod = |note: PodNote| {
                (&note.container, &note.interface) == (&attachment.container, &attachment.interface)
                    && Some(note.addresses.first())
                        == self.addresses.first().map(IpNet::addr).as_ref()
            };
            if !veth::note(&port).is_some_and(is_of_pod) {
                return changed(format!("the alias of {name} does not describe the pod"));
            }
        }
        Ok(())
    }
}

fn present(link: Option<Link>, name: &str) -> Result<Link, Error> {
    link.ok_or_else(|| Error::Changed(format!("{name} is gone")))
}

fn changed<T>(what: String) -> Result<T, Error> {
    Err(Error::Changed(what))
}
