//! One look at devices and addresses that serves many questions.
//!
//! A round asks a dozen times which devices there are and what is on them; on a node with many pods
//! each answer is long. Within a look the kernel is asked once for each.

use std::sync::{Arc, Mutex, PoisonError};

use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;

use super::{Error, Kernel};

/// What has been seen; nothing outside of a look.
pub(super) type Look = Mutex<Option<Seen>>;

/// What the kernel was asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    links: Option<Arc<Vec<LinkMessage>>>,
    addresses: Option<Arc<Vec<AddressMessage>>>,
}

impl Kernel {
    /// Begins a look, also where one is under way: what is asked from here on is asked anew, once.
    /// It ends with the first change that we make to a device or its addresses, or with
    /// [`Kernel::look_away`].
    pub fn look(&self) {
        self.set_look(Some(Seen::default()));
    }

    /// Ends a look, so that every question is asked when it comes up.
    pub fn look_away(&self) {
        self.set_look(None);
    }

    fn set_look(&self, look: Option<Seen>) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = look;
    }

    fn seen(&self) -> Seen {
        let look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        look.clone().unwrap_or_default()
    }

    fn remember(&self, note: impl FnOnce(&mut Seen)) {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = look.as_mut() {
            note(seen);
        }
    }

    /// Every device of the namespace.
    pub(super) async fn links(&self) -> Result<Arc<Vec<LinkMessage>>, Error> {
        if let Some(links) = self.seen().links {
            return Ok(links);
        }
        let all = self.handle.link().get().execute();
        let links = Arc::new(self.dump("RTM_GETLINK", "all devices", all).await?);
        self.remember(|seen| seen.links = Some(Arc::clone(&links)));
        Ok(links)
    }

    /// Every address of the namespace.
    pub(super) async fn addresses(&self) -> Result<Arc<Vec<AddressMessage>>, Error> {
        if let Some(addresses) = self.seen().addresses {
            return Ok(addresses);
        }
        let all = self.handle.address().get().execute();
        let addresses = Arc::new(self.dump("RTM_GETADDR", "all devices", all).await?);
        self.remember(|seen| seen.addresses = Some(Arc::clone(&addresses)));
        Ok(addresses)
    }
}
