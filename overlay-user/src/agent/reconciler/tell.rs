//! Messages of a round to the service manager, the tools and the task for Services.

use super::super::health::Report;
use super::super::path_check::Paths;
use super::Reconciler;
use crate::allocator;
use crate::observe::agent_file::AgentFile;

impl Reconciler {
    /// Reports to the log and the service manager that the node is ready, once.
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

    /// Publishes the network namespaces whose Services are left to kube-proxy.
    pub(super) fn tell_services(&self) {
        let notes = self.seen.pods.pods.iter().map(|pod| &pod.note);
        let opted_out = notes.filter_map(|note| note.by_kube_proxy);
        self.services.opt_out(opted_out.collect());
    }

    /// Writes the note for the tools: the state that the kernel does not show.
    pub(super) fn leave_note(&mut self, report: &mut Report) {
        let paths = self.path_check.paths().borrow().clone();
        let file = AgentFile {
            early_refusal: self.fast_path.early_refusal(),
            foreign_programs: self.fast_path.foreign_programs(),
            network_policies: self.hindrance.note(),
            services: Some(self.services.standing.borrow().text()),
            refused_services: (&*self.services.refused.borrow()).into(),
            ..note(&self.file, report, paths)
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

/// The note with what is known of leases and of the ways to peers.
fn note(last: &AgentFile, report: &Report, paths: Paths) -> AgentFile {
    let rejected = report.rejected.sorted();
    AgentFile {
        rejected: rejected.iter().map(|it| (&***it).into()).collect(),
        leases_as_of: report.leases_as_of.clone(),
        unreachable: paths.unreachable,
        unchecked: paths.unchecked,
        ..last.clone()
    }
}

/// The judge of what pods and nodes send, as text for people.
pub(super) fn guards(by_programs: usize) -> String {
    match by_programs {
        0 => "nftables".to_owned(),
        pods => format!("eBPF programs what {pods} pods send, nftables all else"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_follows_the_leases_and_the_ways_to_peers() {
        let json = br#"{"pid": 7, "device": "flannel.1", "health": null, "subnet_file": "/f"}"#;
        let first = AgentFile::parse(json).expect("a note");
        let mut report = Report::default();
        report.leases_as_of = Some("2023-11-14T22:13:20Z".to_owned());
        let paths = Paths {
            unchecked: Some("no socket".to_owned()),
            ..Paths::default()
        };
        let told = note(&first, &report, paths);
        assert_eq!(told.leases_as_of, report.leases_as_of);
        assert_eq!(told.unchecked.as_deref(), Some("no socket"));
        // What is over is taken back.
        assert_eq!(note(&told, &Report::default(), Paths::default()), first);
    }
}
