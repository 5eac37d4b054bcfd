//! flanneld's flags that mean nothing here, or nothing yet.

use clap::{ArgAction, Args};

use super::store::TwoStores;
use crate::config::go_flags::go_bool;

/// Accepted so that command lines written for flanneld start; hidden from the help.
#[derive(Args, Clone, Debug)]
pub(super) struct ForeignFlags {
    #[arg(long, hide = true, env = "FLANNELD_PUBLIC_IPV6")]
    public_ipv6: Option<String>,
    #[arg(
        long, hide = true, env = "FLANNELD_IP_BLACKHOLE_ROUTE", default_value = "false",
        value_parser = go_bool, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set
    )]
    ip_blackhole_route: bool,
    // Flags that change only what klog prints.
    #[arg(long, hide = true, env = "FLANNELD_V")]
    v: Option<String>,
    #[arg(long, hide = true, env = "FLANNELD_VMODULE")]
    vmodule: Option<String>,
    #[arg(
        long = "log_backtrace_at",
        hide = true,
        env = "FLANNELD_LOG_BACKTRACE_AT"
    )]
    log_backtrace_at: Option<String>,
}

/// A combination of flags that cannot work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// flanneld can, this agent cannot yet.
    #[error("{flag} is not supported yet; {cure}")]
    NotSupported {
        /// The flag, with both dashes.
        flag: &'static str,
        /// What to do about it.
        cure: &'static str,
    },
    /// More than one store.
    #[error(transparent)]
    TwoStores(#[from] TwoStores),
}

impl ForeignFlags {
    /// Refuses what flanneld would act on and this agent would not.
    pub(super) fn check(&self) -> Result<(), FlagError> {
        let given = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        for (asked, flag, cure) in [
            (
                given(&self.public_ipv6),
                "--public-ipv6",
                "remove it: the underlay is IPv4",
            ),
            (self.ip_blackhole_route, "--ip-blackhole-route", "remove it"),
        ] {
            if asked {
                return Err(FlagError::NotSupported { flag, cure });
            }
        }
        Ok(())
    }
}
