//! What is attached by clsact.

use overlay_common::Hook;

use super::view::HookView;
use crate::datapath::programs::{self, OnHook};
use crate::kernel::{self, Kernel};
use crate::marks::CLSACT_PRIORITY;

/// Our programs that are filters of a clsact qdisc, with those of others on the same side of the
/// device, in the order they run.
pub(super) async fn attachments(kernel: &Kernel) -> Result<Vec<HookView>, kernel::Error> {
    let mut attachments = Vec::new();
    for (ifindex, device) in kernel.clsact_devices().await? {
        let mut filters = kernel.filters(ifindex).await?;
        filters.sort_by_key(|filter| filter.priority);
        for egress in [false, true] {
            let side = filters.iter().filter(|filter| filter.egress == egress);
            let programs: Vec<(u16, OnHook)> = side
                .filter_map(|filter| Some((filter.priority, programs::by_id(filter.program?)?)))
                .collect();
            let is_of = |hook: &Hook| {
                programs.iter().any(|(priority, program)| {
                    *priority == CLSACT_PRIORITY && program.name == programs::name(*hook)
                })
            };
            if let Some(hook) = Hook::ALL.into_iter().find(is_of) {
                attachments.push(HookView {
                    hook: hook.name(),
                    device: device.clone(),
                    programs: programs.into_iter().map(|(_, program)| program).collect(),
                });
            }
        }
    }
    Ok(attachments)
}
