//! The program that judges the packets that a pod sends, pinned for the CNI plugin: the program
//! guards the pods that are created while no agent runs.
//!
//! `programs/tcx/ov_pod_in` or `programs/clsact/ov_pod_in`: the directory tells the plugin by which
//! mechanism the agent attaches, because a packet must pass the program only once. The program at
//! the hook's other end is not needed: it only saves work that the agent does by connection
//! tracking when it adopts the pod.

use std::fs;
use std::path::PathBuf;

use aya::programs::SchedClassifier;
use overlay_common::Hook;

use super::super::Error;
use super::super::pins::Pins;
use super::{Mechanism, Programs, add_filter, attach_failed, link_program, name};

/// The hook whose program is offered.
const OFFERED: Hook = Hook::PodIn;

impl Programs {
    /// Pins the program that the plugin attaches, and replaces the pin of an earlier agent.
    ///
    /// # Errors
    /// [`Error::Pin`], [`Error::Link`].
    pub fn offer(&mut self) -> Result<(), Error> {
        let mechanism = self.mechanism;
        for other in [Mechanism::Tcx, Mechanism::Clsact] {
            if other != mechanism {
                Pins::remove(&pin(&self.pins, other))?;
            }
        }
        let pin = pin(&self.pins, mechanism);
        let failed = |call| {
            let path = pin.clone();
            move |source| Error::Pin { call, path, source }
        };
        let directory = pin.parent().unwrap_or(&pin);
        fs::create_dir_all(directory).map_err(failed("mkdir"))?;
        // A reader finds either the old program or the new one at every moment. A BPF file system
        // allows no dots in names.
        let new = pin.with_file_name("new");
        Pins::remove(&new)?;
        self.program(OFFERED)?
            .pin(&new)
            .map_err(|error| super::link_failed("pin", &new, &error))?;
        fs::rename(&new, &pin).map_err(failed("rename"))
    }
}

/// Attaches the program that an agent has pinned for pods to the host end of a new pod; `false`
/// where no program is pinned.
///
/// With tcx the call waits for a grace period of RCU, some 10 ms.
///
/// # Errors
/// [`Error::Attach`], [`Error::Link`], [`Error::Pin`].
pub fn attach_offered(pins: &Pins, interface: &str, ifindex: u32) -> Result<bool, Error> {
    for mechanism in [Mechanism::Tcx, Mechanism::Clsact] {
        let pin = pin(pins, mechanism);
        if !pin.exists() {
            continue;
        }
        let mut program = SchedClassifier::from_pin(&pin).map_err(attach_failed(
            "bpf_obj_get",
            OFFERED,
            interface,
        ))?;
        match mechanism {
            Mechanism::Tcx => {
                let link = pins.link(OFFERED, ifindex);
                link_program(&mut program, &link, OFFERED, interface)?;
            }
            Mechanism::Clsact => add_filter(&mut program, OFFERED, interface)?,
        }
        return Ok(true);
    }
    Ok(false)
}

fn pin(pins: &Pins, mechanism: Mechanism) -> PathBuf {
    let how = match mechanism {
        Mechanism::Tcx => "tcx",
        Mechanism::Clsact => "clsact",
    };
    pins.programs().join(how).join(name(OFFERED))
}
