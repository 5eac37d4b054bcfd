//! Whether network policies, and other packet-filter rules of others, keep the fast path from being
//! active.

use super::settings::Settings;
use crate::config::flags::FastPathMode;
use crate::kernel::pods::PodLinks;
use crate::kernel::policies::{Found, Policies, Policy, Scope};
use crate::marks::BRIDGE;

/// The foreign packet-filter rules that keep packets on the kernel path, as of the last look.
#[derive(Debug)]
pub struct Hindrance {
    wanted: FastPathMode,
    rules: Policies,
    /// The packets that the rules are looked for; none before the first round.
    scope: Option<Scope>,
    found: Found,
}

impl Hindrance {
    /// The state before the first look, as the flags set it.
    pub fn new(wanted: FastPathMode) -> Self {
        Self {
            wanted,
            rules: Policies::default(),
            scope: None,
            found: Found::default(),
        }
    }

    /// Looks for rules that packets of `scope` meet. Where nothing has changed since the last look,
    /// that costs some system calls.
    pub async fn find(&mut self, scope: Scope) {
        self.scope = Some(scope);
        self.find_again().await;
    }

    /// Looks again, for the same packets. Returns whether anything has changed, and logs a change.
    pub async fn find_again(&mut self) -> bool {
        let Some(scope) = self
            .scope
            .as_ref()
            .filter(|_| self.wanted != FastPathMode::Off)
        else {
            return false;
        };
        let found = self.rules.find(scope).await;
        if found == self.found {
            return false;
        }
        self.found = found;
        match self.note() {
            Some(note) => tracing::warn!("{note}"),
            None => tracing::info!("there are no foreign packet-filter rules any more"),
        }
        true
    }

    /// Why the fast path must not be active, if it must not.
    pub fn reason(&self) -> Option<String> {
        self.found
            .reason()
            .filter(|_| self.wanted == FastPathMode::Auto)
    }

    /// The consequence of the rules, as text for people.
    pub fn note(&self) -> Option<String> {
        let reason = self.found.reason()?;
        Some(match self.wanted {
            FastPathMode::Force => {
                format!("{reason}: the fast path passes them by (--fast-path=force)")
            }
            _ => format!("{reason}: the kernel path carries everything"),
        })
    }

    /// The rules themselves.
    pub fn policies(&self) -> &[Policy] {
        &self.found.policies
    }
}

/// The packets whose short cut passes by netfilter.
pub fn scope(settings: &Settings, nic: &str, pods: &PodLinks) -> Scope {
    let bridge = pods.bridge.as_ref();
    let bridge = bridge.map_or(BRIDGE, |bridge| &bridge.name);
    let device = settings.device.as_deref();
    // Packets that nothing is around meet the rules for the NIC.
    let nic = settings.backend.has_direct_ways().then_some(nic);
    Scope {
        network: settings.network(),
        devices: [bridge]
            .into_iter()
            .chain(device)
            .chain(nic)
            .map(str::to_owned)
            .collect(),
        ports: pods.pods.iter().map(|pod| pod.name.clone()).collect(),
    }
}
