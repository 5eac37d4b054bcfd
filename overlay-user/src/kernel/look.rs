//! One look at devices and addresses that serves many requests.
//!
//! A round needs the devices and their addresses a dozen times; on a node with many pods each
//! answer is long. Within a look the kernel is asked once for each.

use std::sync::{Arc, Mutex, PoisonError};

use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;

use super::{Error, Kernel};

/// The answers of the present look; `None` outside of a look.
pub(super) type Look = Mutex<Option<Answers>>;

/// The kernel's answers within a look.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    links: Option<Arc<Vec<LinkMessage>>>,
    addresses: Option<Arc<Vec<AddressMessage>>>,
}

impl Kernel {
    /// Begins a look, also during another one: from now on each request is sent anew, once. The
    /// look ends with the first change that this connection makes to a device or its addresses, or
    /// with [`Kernel::look_away`].
    pub fn look(&self) {
        self.set_look(Some(Answers::default()));
    }

    /// Ends a look, so that every request is sent to the kernel again.
    pub fn look_away(&self) {
        self.set_look(None);
    }

    fn set_look(&self, look: Option<Answers>) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = look;
    }

    fn answers(&self) -> Answers {
        let look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        look.clone().unwrap_or_default()
    }

    fn remember(&self, note: impl FnOnce(&mut Answers)) {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answers) = look.as_mut() {
            note(answers);
        }
    }

    /// Every device of the namespace.
    pub(super) async fn links(&self) -> Result<Arc<Vec<LinkMessage>>, Error> {
        if let Some(links) = self.answers().links {
            return Ok(links);
        }
        let all = self.handle.link().get().execute();
        let links = Arc::new(self.dump("RTM_GETLINK", "all devices", all).await?);
        self.remember(|answers| answers.links = Some(Arc::clone(&links)));
        Ok(links)
    }

    /// Every address of the namespace.
    pub(super) async fn addresses(&self) -> Result<Arc<Vec<AddressMessage>>, Error> {
        if let Some(addresses) = self.answers().addresses {
            return Ok(addresses);
        }
        let all = self.handle.address().get().execute();
        let addresses = Arc::new(self.dump("RTM_GETADDR", "all devices", all).await?);
        self.remember(|answers| answers.addresses = Some(Arc::clone(&addresses)));
        Ok(addresses)
    }
}
