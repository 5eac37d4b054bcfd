//! The programs, loaded over maps of their own in a network namespace of their own.

use std::process::Command;
use std::thread;
use std::time::Duration;

use aya::programs::{Program, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use bytemuck::Zeroable as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use overlay_common::schema::{Config, Counter, Flow, FlowKey};
use overlay_common::{Hook, V4, Verdict};
use overlay_user::datapath::maps::{self, Maps};
use overlay_user::datapath::pins::Pins;
use overlay_user::datapath::tables::Tables;
use overlay_user::datapath::{object, programs};

use crate::decide::cases::Case;
use crate::decide::world::{NIC, NIC_MAC, VETH_A, VETH_B, VETH_UNKNOWN, World};

/// Room for a frame and what encapsulation puts in front.
const LONGEST: usize = 4096;
/// Ethernet and IPv6 headers: every kernel makes a socket buffer of these, and not every one of less.
const SHORTEST: usize = 54;

/// Where fields stand in `struct __sk_buff` (include/uapi/linux/bpf.h), and how long it is.
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;
const SK_BUFF_LEN: usize = 192;

/// Environment variable with an object file to load in place of the one that is built in.
const OBJECT_ENV: &str = "OVERLAY_BPF_OBJECT";

/// The programs and their maps.
pub struct Kernel {
    ebpf: Ebpf,
    maps: Maps<V4>,
    counters: Vec<(Hook, Verdict, Counter)>,
    /// Whether the agent seems to live: from world to world it does and does not.
    alive: bool,
}

/// What a program did with a packet.
#[derive(Debug)]
pub struct Ran {
    /// How long it took, as the kernel measured it, with its timer.
    pub took: Duration,
    /// What it returned to tc.
    pub action: i32,
    /// What it counted.
    pub verdict: Verdict,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// The flow that it remembered.
    pub remembered: Option<FlowKey<V4>>,
}

/// Runs a test with the programs, on a thread whose namespaces go with it.
pub fn in_kernel(test: impl FnOnce(&mut Kernel) + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test loads programs into the kernel: run it as root"
    );
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare namespaces");
        // Mounts of ours shall not reach other namespaces.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        for ifindex in [NIC, VETH_A, VETH_B, VETH_UNKNOWN] {
            add_interface(ifindex);
        }
        let dir = tempfile::tempdir().expect("a directory");
        mount(
            Some("bpf"),
            dir.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("mount a BPF file system");
        test(&mut Kernel::load(&Pins::new(dir.path().join("overlay"))));
        nix::mount::umount(dir.path()).expect("unmount the BPF file system");
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// A device to receive on, of a type that every kernel has. The kernel tells by its address what is sent to
/// this host.
fn add_interface(ifindex: u32) {
    let mac = NIC_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let line = format!("link add if{ifindex} index {ifindex} address {mac} type bridge");
    let status = Command::new("ip").args(line.split(' ')).status();
    assert!(status.expect("run ip").success(), "ip {line}");
}

impl Kernel {
    fn load(pins: &Pins) -> Self {
        pins.create().expect("directories for pins");
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &0_u8, false);
        for name in maps::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
        // Another build of the programs, to compare with.
        let mut ebpf = match std::env::var_os(OBJECT_ENV) {
            Some(path) => loader.load_file(path),
            None => loader.load(object::bytes().expect("programs: run `cargo xtask build` first")),
        }
        .expect("load the object");
        for hook in Hook::ALL {
            let program = ebpf.program_mut(programs::name(hook));
            match program.expect("a program for every hook") {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                other => panic!("{hook:?}: {:?}", other.prog_type()),
            }
            .expect("load a program");
        }
        let maps = Maps::open(pins).expect("open the maps");
        Self {
            ebpf,
            maps,
            counters: Vec::new(),
            alive: false,
        }
    }

    fn program(&self, hook: Hook) -> &Program {
        let program = self.ebpf.program(programs::name(hook));
        program.expect("a program for every hook")
    }

    /// How many instructions the verifier walked through.
    pub fn verified_instructions(&self) -> Vec<(Hook, u32)> {
        Hook::ALL
            .map(|hook| {
                let info = self
                    .program(hook)
                    .info()
                    .expect("the program's description");
                let verified = info.verified_instruction_count();
                (hook, verified.expect("a count (Linux 5.16)"))
            })
            .to_vec()
    }

    /// Makes the maps hold what a world has.
    pub fn set_world(&mut self, world: &World) {
        let tables = Tables {
            config: world.config,
            endpoints: world.endpoints.clone(),
            pods: world.pods.clone(),
            peers: world.peers.clone(),
            vteps: world.vteps.clone(),
            flows: world.flows.clone(),
        };
        let maps = &mut self.maps;
        // As the map is before an agent has written anything.
        let config = tables.config.unwrap_or_else(Config::zeroed);
        maps.set_config(&config).expect("write the configuration");
        self.alive = !self.alive;
        maps.set_heartbeat(if self.alive { u64::MAX } else { 0 })
            .expect("write the heartbeat");
        maps.retire(&tables).expect("empty the maps");
        maps.fill(&tables).expect("fill the maps");
        for (flow, _) in maps.flows().expect("read the flows") {
            maps.remove_flow(&flow).expect("remove a flow");
        }
        for flow in &tables.flows {
            let since = Flow { last_seen_ns: 1 };
            maps.add_flow(flow, since).expect("add a flow");
        }
        assert_eq!(maps.dump().expect("read the maps"), tables);
    }

    /// Runs the program for the case's hook on its packet; `None` for one that is too short for this kernel
    /// to make a socket buffer of.
    pub fn run(&mut self, case: &Case) -> Option<Ran> {
        let before = self.maps.flows().expect("read the flows");
        let mut context = [0_u8; SK_BUFF_LEN];
        for (at, value) in [(IFINDEX, case.ifindex), (GSO_SIZE, case.gso_size)] {
            context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut frame = vec![0; LONGEST];
        let options = TestRunOptions {
            data_in: Some(&case.frame),
            data_out: Some(&mut frame),
            ..TestRunOptions::default()
        };
        let ran = match self.program(case.hook) {
            Program::SchedClassifier(program) => program.test_run(TestRunOptions {
                ctx_in: Some(&context),
                ..options
            }),
            Program::Xdp(program) => program.test_run(options),
            other => panic!("{:?}: {:?}", case.hook, other.prog_type()),
        };
        let ran = match ran {
            Ok(ran) => ran,
            Err(error) => {
                assert!(case.frame.len() < SHORTEST, "{}: {error:?}", case.name);
                return None;
            }
        };
        frame.truncate(ran.data_size_out as usize);
        Some(Ran {
            took: ran.duration,
            action: ran.return_value as i32,
            verdict: self.counted(case),
            frame,
            remembered: self.remembered(&before),
        })
    }

    /// The verdict that one packet was counted under since the last time.
    fn counted(&mut self, case: &Case) -> Verdict {
        let counters = self.maps.counters().expect("read the counters");
        let previous = |hook, verdict| {
            let same = |(h, v, _): &&(Hook, Verdict, Counter)| (*h, *v) == (hook, verdict);
            self.counters
                .iter()
                .find(same)
                .map_or_else(Counter::default, |(_, _, c)| *c)
        };
        let grown: Vec<(Hook, Verdict, u64, u64)> = counters
            .iter()
            .map(|(hook, verdict, now)| {
                let then = previous(*hook, *verdict);
                (
                    *hook,
                    *verdict,
                    now.packets - then.packets,
                    now.bytes - then.bytes,
                )
            })
            .filter(|(_, _, packets, _)| *packets != 0)
            .collect();
        self.counters = counters;
        match grown[..] {
            [(hook, verdict, 1, bytes)]
                if hook == case.hook && bytes == case.frame.len() as u64 =>
            {
                verdict
            }
            _ => panic!(
                "{}: one packet of {} bytes was counted as {grown:?}",
                case.name,
                case.frame.len()
            ),
        }
    }

    /// The flow that is there and was not before; it is forgotten again.
    fn remembered(&mut self, before: &[(FlowKey<V4>, Flow)]) -> Option<FlowKey<V4>> {
        let after = self.maps.flows().expect("read the flows");
        // A flow that was known is remembered anew, with another time.
        let mut changed = after.into_iter().filter(|flow| !before.contains(flow));
        let (key, flow) = changed.next()?;
        assert_eq!(changed.next(), None, "two flows for one packet");
        assert!(flow.last_seen_ns > 1, "no time");
        self.maps.remove_flow(&key).expect("remove a flow");
        if let Some((key, flow)) = before.iter().find(|(known, _)| *known == key) {
            self.maps.add_flow(key, *flow).expect("restore a flow");
        }
        Some(key)
    }
}
