//! What a round tells the service manager and the tools.

use super::super::health::Report;
use super::Reconciler;
use crate::allocator;
use crate::observe::agent_file::AgentFile;

impl Reconciler {
    /// Tells the log and the service manager when the node is ready for the first time.
    pub(super) fn announce(&mut self, report: &Report) {
        if !report.is_ready() || self.announced {
            return;
        }
        self.announced = true;
        tracing::info!(peers = report.peers, pods = report.pods, "ready");
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::debug!("sd_notify: {error}");
        }
        // The list of nodes and the first rounds took more than later ones need.
        allocator::give_back();
    }

    /// Tells whose Services are left to kube-proxy.
    pub(super) fn tell_services(&self) {
        let notes = self.seen.pods.pods.iter().map(|pod| &pod.note);
        let opted_out = notes.filter_map(|note| note.by_kube_proxy);
        self.services.opt_out(opted_out.collect());
    }

    /// Leaves a note for the tools of what the kernel does not show.
    pub(super) fn leave_note(&mut self, report: &mut Report) {
        let paths = self.path_check.paths().borrow().clone();
        let file = AgentFile {
            rejected: report
                .rejected
                .sorted()
                .iter()
                .map(|it| (&***it).into())
                .collect(),
            leases_as_of: report.leases_as_of.clone(),
            early_refusal: self.fast_path.early_refusal(),
            foreign_programs: self.fast_path.foreign_programs(),
            network_policies: self.hindrance.note(),
            services: Some(self.services.standing.borrow().text()),
            refused_services: (&*self.services.refused.borrow()).into(),
            unreachable: paths.unreachable,
            unchecked: paths.unchecked,
            ..self.file.clone()
        };
        if file == self.file {
            return;
        }
        match file.write(&self.settings.flags.node.run_dir) {
            Ok(()) => self.file = file,
            Err(error) => report.problem("note for the tools", error.to_string()),
        }
    }
}

/// The judge of what pods and nodes send, as text for people.
pub(super) fn guards(by_programs: usize) -> String {
    match by_programs {
        0 => "nftables".to_owned(),
        pods => format!("eBPF programs what {pods} pods send, nftables all else"),
    }
}
