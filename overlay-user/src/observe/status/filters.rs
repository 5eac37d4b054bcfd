//! Programs that are attached by clsact.

use overlay_common::Hook;

use super::view::HookView;
use crate::datapath::programs;
use crate::kernel::pods::Filter;
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
            let side = || filters.iter().filter(|filter| filter.egress == egress);
            if let Some(hook) = side().find_map(ours) {
                attachments.push(HookView {
                    hook: hook.name(),
                    device: device.clone(),
                    programs: side()
                        .filter_map(|filter| {
                            Some(programs::describe(filter.program?, ours(filter)))
                        })
                        .collect(),
                });
            }
        }
    }
    Ok(attachments)
}

/// The hook of a filter of ours. The program is recognised by the name in the filter, because
/// opening the program takes `CAP_SYS_ADMIN`.
fn ours(filter: &Filter) -> Option<Hook> {
    let is_named = |hook: &Hook| filter.name.as_deref() == Some(programs::name(*hook));
    let found = Hook::ALL.into_iter().find(is_named);
    found.filter(|_| filter.priority == CLSACT_PRIORITY)
}
