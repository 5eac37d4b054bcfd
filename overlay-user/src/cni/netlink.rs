//! The kernel's network in one network namespace, as far as the plugin needs it.

mod ip;
mod link;

use futures::{Stream, StreamExt, TryStreamExt};
use netlink_packet_core::ErrorMessage;
use nix::errno::Errno;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkUnspec};
use tokio::runtime;
use tokio::task::JoinHandle;

use super::Error;
use super::netns::Netns;
use crate::mac::MacAddr;
pub use link::Link;

/// A netlink socket, which stays in the namespace that it was opened in.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Netlink {
    /// Opens a socket in the namespace of this thread. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`] if the kernel gives none.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| Error::File {
                action: "open",
                path: "netlink socket".into(),
                source,
            })?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Opens a socket in `netns`. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`Netlink::open`], and [`Error::Netns`] if the namespace cannot be entered.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        let runtime = runtime::Handle::current();
        netns.run(move || {
            let _context = runtime.enter();
            Self::open()
        })?
    }

    /// The link requests of the library, for what is used only once.
    #[must_use]
    pub fn links_handle(&self) -> rtnetlink::LinkHandle {
        self.handle.link()
    }

    /// Finds a device by name.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`]; a device that is not there is `None`.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        match self
            .handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await
        {
            Ok(message) => Ok(message.map(Link::from)),
            Err(error) if is(&error, Errno::ENODEV) => Ok(None),
            Err(source) => Err(refused(format!("show link {name}"), source)),
        }
    }

    /// Finds every device.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let links = self.handle.link().get().execute();
        collect(links)
            .await
            .map_err(|source| refused("list links", source))
    }

    /// Changes a device as `message` says.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`], with `action` in it.
    pub async fn set(&self, message: LinkMessage, action: &str) -> Result<(), Error> {
        let done = self.handle.link().set(message).execute().await;
        done.map_err(|source| refused(action, source))
    }

    /// Sets a device up.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn set_up(&self, link: &Link) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        self.set(message, &format!("set {} up", link.name)).await
    }

    /// Sets a device's Ethernet address.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn set_mac(&self, link: &Link, mac: MacAddr) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(link.index)
            .address(mac.0.to_vec())
            .build();
        self.set(
            message,
            &format!("set the Ethernet address of {}", link.name),
        )
        .await
    }

    /// Deletes a device, and with it the other end of a veth pair. One that is gone is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub async fn delete(&self, link: &Link) -> Result<(), Error> {
        match self.handle.link().del(link.index).execute().await {
            Err(source) if !is(&source, Errno::ENODEV) => {
                Err(refused(format!("delete link {}", link.name), source))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Whether the kernel answered with `errno`.
#[must_use]
pub fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. })
        if code.get() == -(errno as i32))
}

/// An [`Error::Netlink`].
pub fn refused(action: impl Into<String>, source: rtnetlink::Error) -> Error {
    Error::Netlink {
        action: action.into(),
        source,
    }
}

async fn collect(
    messages: impl Stream<Item = Result<LinkMessage, rtnetlink::Error>>,
) -> Result<Vec<Link>, rtnetlink::Error> {
    messages
        .map(|message| message.map(Link::from))
        .try_collect()
        .await
}
