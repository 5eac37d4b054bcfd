//! A round's look at the kernel, by which the round also follows the underlay's device.

use std::time::Instant;

use super::super::health::Report;
use super::super::underlay::Step;
use super::Reconciler;
use crate::kernel;

impl Reconciler {
    /// Looks at the kernel, and follows the underlay's device.
    pub(super) async fn see(&mut self, report: &mut Report) -> Result<(), kernel::Error> {
        let ifindex = self.footing.underlay().ifindex;
        self.seen
            .refresh(&self.kernel, &self.settings, ifindex)
            .await?;
        let step = self
            .footing
            .judge(self.seen.underlay.as_ref(), Instant::now());
        match step {
            Step::Stay => return Ok(()),
            Step::Wait | Step::Readdress => {
                let name = &self.footing.underlay().name;
                let why = format!("{name} has lost its address; waiting");
                report.hindrance = Some(format!("underlay: {why}"));
                report.note("underlay", why);
            }
            Step::Choose | Step::GoBack => {}
        }
        if step == Step::Wait {
            return Ok(());
        }
        let network = self.settings.network();
        let criteria = &self.settings.criteria;
        match self.kernel.select_underlay(criteria, network).await {
            Ok(choice) => {
                let old = self.footing.underlay().clone();
                if self.footing.take(step, choice) {
                    let new = self.footing.underlay();
                    tracing::warn!(?old, ?new, "the underlay changed");
                    self.seen.distrust();
                    let ifindex = new.ifindex;
                    self.seen
                        .refresh(&self.kernel, &self.settings, ifindex)
                        .await?;
                    if let Some(seen) = &self.seen.underlay {
                        self.footing.learn_link(seen);
                    }
                }
            }
            Err(error) if step == Step::Choose => report.problem("underlay", error.to_string()),
            Err(_) => {}
        }
        Ok(())
    }
}
