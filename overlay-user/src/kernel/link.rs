//! The VXLAN device.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use rtnetlink::packet_route::link::{InfoKind, LinkMessage};
use rtnetlink::{AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::attributes::{link_mac, link_mtu, link_name, on_device, vxlan};
use super::{Error, Kernel, gone_is_fine};
use crate::mac::MacAddr;
use crate::reconcile::{OverlayDevice, VxlanAttributes};

impl Kernel {
    /// Name and MTU of a device; `None` when no device has this index.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn device(&self, ifindex: u32) -> Result<Option<(String, u32)>, Error> {
        let links = self.links().await?;
        let found = links.iter().find(|link| link.header.index == ifindex);
        Ok(found.and_then(|link| Some((link_name(link)?.to_owned(), link_mtu(link)))))
    }

    /// The addresses of a device, each with its prefix length.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn addresses_of(&self, ifindex: u32) -> Result<Vec<IpNet>, Error> {
        Ok(on_device(&self.addresses().await?, ifindex).collect())
    }

    /// Whether a device has an address.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn has_address(&self, ifindex: u32, address: IpAddr) -> Result<bool, Error> {
        let addresses = self.addresses_of(ifindex).await?;
        Ok(addresses.iter().any(|found| found.addr() == address))
    }

    /// MAC address of a device; `None` when no device has this index, or the device has no MAC
    /// address.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn device_mac(&self, ifindex: u32) -> Result<Option<MacAddr>, Error> {
        let links = self.links().await?;
        Ok(links
            .iter()
            .find(|link| link.header.index == ifindex)
            .and_then(link_mac))
    }

    /// VNIs of VXLAN devices other than `name` that share its UDP port.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn other_vnis(&self, name: &str, port: u16) -> Result<BTreeSet<u32>, Error> {
        let links = self.links().await?;
        let others = links.iter().filter(|link| link_name(link) != Some(name));
        let devices = others
            .filter_map(vxlan)
            .filter(|device| device.port == port);
        Ok(devices.map(|device| device.vni).collect())
    }

    /// Deletes the VXLAN devices that an agent of this network has made with another VNI than that
    /// of the device called `name`, or for another backend than the present one, and returns their
    /// names. No agent maintains those devices, and no rule checks the packets that they receive.
    /// Such a device is called `flannel.<VNI>` after its own VNI, and has a host address inside the
    /// network, as flannel assigns it.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn remove_former(
        &self,
        name: Option<&str>,
        network: IpNet,
    ) -> Result<Vec<String>, Error> {
        let links = self.links().await?;
        let addresses = self.addresses().await?;
        let mut removed = Vec::new();
        for link in links.iter().filter(|link| link_name(link) != name) {
            let Some(vni) = vxlan(link).map(|device| device.vni) else {
                continue;
            };
            let former = format!("flannel.{vni}");
            let is_of_network = |address: IpNet| {
                address.prefix_len() == address.max_prefix_len() && network.contains(&address)
            };
            if link_name(link) == Some(&former)
                && on_device(&addresses, link.header.index).any(is_of_network)
            {
                self.delete_link(link.header.index).await?;
                removed.push(former);
            }
        }
        Ok(removed)
    }

    /// Interface index of the device called `name`.
    ///
    /// # Errors
    /// [`Error::NoDevice`], or what netlink says.
    pub async fn ifindex(&self, name: &str) -> Result<u32, Error> {
        let links = self.links().await?;
        links
            .iter()
            .find(|link| link_name(link) == Some(name))
            .map(|link| link.header.index)
            .ok_or_else(|| Error::NoDevice(name.to_owned()))
    }

    /// Creates the VXLAN device, down and without addresses; learning is off, all other attributes
    /// have the kernel's defaults.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn create_vxlan(
        &self,
        device: &OverlayDevice,
        vxlan: &VxlanAttributes,
    ) -> Result<(), Error> {
        self.look_away();
        let mut message = LinkVxlan::new(&device.name, vxlan.vni)
            .dev(vxlan.underlay)
            .port(vxlan.port)
            .learning(vxlan.learning)
            .mtu(device.mtu)
            .address(device.mac.0.to_vec());
        message = match vxlan.local {
            Some(IpAddr::V4(address)) => message.local(address),
            Some(IpAddr::V6(address)) => message.local6(address),
            None => message,
        };
        let call = self.handle.link().add(message.build()).execute();
        self.request("RTM_NEWLINK", &device.name, call).await
    }

    /// Restores the name of the VXLAN device after a foreign rename, because the kernel refuses a
    /// second device with the same VNI and port. The device is recognised by its MAC address and
    /// VNI. Returns whether there was one.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn reclaim_name(&self, device: &OverlayDevice) -> Result<bool, Error> {
        let links = self.links().await?;
        if links
            .iter()
            .any(|link| link_name(link) == Some(&device.name))
        {
            return Ok(false);
        }
        let vni = |it: &VxlanAttributes| it.vni;
        let is_ours = |link: &&LinkMessage| {
            link_mac(link) == Some(device.mac)
                && vxlan(link).is_some()
                && vxlan(link).as_ref().map(vni) == device.vxlan.as_ref().map(vni)
        };
        let Some(ifindex) = links.iter().find(is_ours).map(|link| link.header.index) else {
            return Ok(false);
        };
        self.look_away();
        // Before Linux 6.2 only a device that is down can be renamed. Two requests are needed,
        // because the kernel carries out the name of a request before the flags (do_setlink() in
        // net/core/rtnetlink.c). The next difference sets the device up.
        let down = LinkUnspec::new_with_index(ifindex).down();
        let name = LinkUnspec::new_with_index(ifindex).name(device.name.clone());
        for (change, what) in [
            (down, "down".to_owned()),
            (name, format!("name {}", device.name)),
        ] {
            let call = self.handle.link().set(change.build()).execute();
            self.request("RTM_SETLINK", &format!("ifindex {ifindex} {what}"), call)
                .await?;
        }
        Ok(true)
    }

    /// Deletes a device; a missing device is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn delete_link(&self, ifindex: u32) -> Result<(), Error> {
        self.look_away();
        let object = format!("ifindex {ifindex}");
        let call = self.handle.link().del(ifindex).execute();
        gone_is_fine(self.request("RTM_DELLINK", &object, call).await)
    }

    /// Stops a VXLAN device from learning.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn disable_learning(&self, ifindex: u32, name: &str, vni: u32) -> Result<(), Error> {
        self.look_away();
        // Without the device's name, because Linux before 6.2 refuses the name of a device that is
        // up by EBUSY, even if it is the name that the device has (dev_change_name()).
        let message = LinkMessageBuilder::<LinkVxlan>::new_with_info_kind(InfoKind::Vxlan)
            .index(ifindex)
            .id(vni)
            .learning(false)
            .build();
        // RTM_SETLINK does not change attributes of one kind of device. RTM_NEWLINK does, also of
        // an existing device, unless flags demand a new one.
        let call = self
            .handle
            .link()
            .add(message)
            .set_flags(NLM_F_REQUEST | NLM_F_ACK)
            .execute();
        self.request("RTM_NEWLINK", &format!("{name} nolearning"), call)
            .await
    }

    /// Sets a device's MTU.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn set_mtu(&self, ifindex: u32, mtu: u32) -> Result<(), Error> {
        self.look_away();
        let message = LinkUnspec::new_with_index(ifindex).mtu(mtu).build();
        let object = format!("ifindex {ifindex} mtu {mtu}");
        self.request(
            "RTM_SETLINK",
            &object,
            self.handle.link().set(message).execute(),
        )
        .await
    }

    /// Sets a device up.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn set_up(&self, ifindex: u32) -> Result<(), Error> {
        self.look_away();
        let message = LinkUnspec::new_with_index(ifindex).up().build();
        let object = format!("ifindex {ifindex} up");
        self.request(
            "RTM_SETLINK",
            &object,
            self.handle.link().set(message).execute(),
        )
        .await
    }

    /// Adds an address to a device; an address that exists already is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn add_address(&self, ifindex: u32, address: IpNet) -> Result<(), Error> {
        self.look_away();
        let call = self
            .handle
            .address()
            .add(ifindex, address.addr(), address.prefix_len());
        self.request(
            "RTM_NEWADDR",
            &address.to_string(),
            call.replace().execute(),
        )
        .await
    }

    /// Removes an address from a device; a missing address is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove_address(&self, ifindex: u32, address: IpNet) -> Result<(), Error> {
        self.look_away();
        let message = match address {
            IpNet::V4(net) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
                .index(ifindex)
                .address(net.addr(), net.prefix_len())
                .build(),
            IpNet::V6(net) => AddressMessageBuilder::<std::net::Ipv6Addr>::new()
                .index(ifindex)
                .address(net.addr(), net.prefix_len())
                .build(),
        };
        let call = self.handle.address().del(message).execute();
        gone_is_fine(
            self.request("RTM_DELADDR", &address.to_string(), call)
                .await,
        )
    }
}
