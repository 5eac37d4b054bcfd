//! Replaces one configuration by another in steps, so that at no moment a packet is refused that
//! both configurations accept.

use overlay_common::Family;
use overlay_common::schema::{CONFIG_DIRECT, CONFIG_SHARED_PORT, CONFIG_VTEPS_INCOMPLETE, Config};

/// Flags that no configuration may lack even for a moment, because programs refuse packets by these
/// flags also while they leave everything to the kernel: packets with another device's VNI, from a
/// node that had no room in the tables, or of a pod of this node that arrive by the NIC.
pub const JUDGING: u32 = CONFIG_SHARED_PORT | CONFIG_VTEPS_INCOMPLETE | CONFIG_DIRECT;

/// The writes, in order, by which `config` replaces `current`.
pub(super) fn steps<F: Family>(current: &Config<F>, config: &Config<F>) -> Vec<Config<F>> {
    let flags = config.flags;
    if (Config { flags, ..*current }) == *config {
        return vec![*config];
    }
    let flags = (current.flags | config.flags) & JUDGING;
    let mut steps = Vec::new();
    if current.flags != 0 {
        steps.push(Config { flags, ..*current });
    }
    steps.extend([Config { flags, ..*config }, *config]);
    steps
}

#[cfg(test)]
mod tests {
    use overlay_common::V4;
    use overlay_common::schema::{ABI_VERSION, CONFIG_ACTIVE, CONFIG_PEERS_COMPLETE};

    use super::*;

    fn config(vni: u32, flags: u32) -> Config<V4> {
        Config {
            abi: ABI_VERSION,
            flags,
            underlay_ifindex: 2,
            vtep_ifindex: 5,
            vni,
            network: [10, 244, 0, 0],
            network_mask: [255, 255, 0, 0],
            subnet: [10, 244, 1, 0],
            subnet_mask: [255, 255, 255, 0],
            gateway: [10, 244, 1, 1],
            peer_mask: [255, 255, 255, 0],
            vtep: [192, 0, 2, 1],
            vtep_mac: [2, 0, 0, 0, 0, 1],
            bridge_mac: [2, 0, 0, 0, 1, 1],
            port: 8472,
            source_port_min: 32768,
            source_port_count: 28231,
            underlay_mac: [2, 0, 0, 0, 9, 1],
        }
    }

    #[test]
    fn at_no_moment_is_somebody_refused_whom_both_configurations_let_pass() {
        let flags = CONFIG_ACTIVE | CONFIG_PEERS_COMPLETE | CONFIG_VTEPS_INCOMPLETE | CONFIG_DIRECT;
        let (old, new) = (config(1, flags), config(2, flags | CONFIG_SHARED_PORT));
        let steps = steps(&old, &new);
        assert_eq!(steps, [config(1, JUDGING), config(2, JUDGING), new]);
    }

    #[test]
    fn flags_alone_change_at_once() {
        let (old, new) = (config(1, 0), config(1, CONFIG_ACTIVE));
        assert_eq!(steps(&old, &new), [new]);
    }
}
