//! The programs, loaded over maps of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::xdp::DevMapHash;
use aya::programs::{Program, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use bytemuck::Zeroable as _;
use overlay_common::schema::{Config, Counter, Flow, FlowKey, Heartbeat};
use overlay_common::snapshot::Snapshot;
use overlay_common::{Family, Hook, V4, Verdict};
use overlay_user::datapath::events::{Events, PacketEvent};
use overlay_user::datapath::family::UserFamily;
use overlay_user::datapath::maps::{self, Maps};
use overlay_user::datapath::pins::Pins;
use overlay_user::datapath::{object, programs};

use overlay_common::visit::Visit;

/// Room for the longest frame that the kernel takes here, which is less than a page, and what
/// encapsulation puts in front.
const LONGEST: usize = 4096;
/// Ethernet and IPv6 headers: every kernel makes a socket buffer of these, and not every one of
/// less.
const SHORTEST: usize = 54;

/// Where fields stand in `struct __sk_buff` (include/uapi/linux/bpf.h), and how long it is.
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;
const SK_BUFF_LEN: usize = 192;

/// Entries that large tables have here: reading a map takes as long as it could be full.
const ROOM: u32 = 4096;

/// Environment variable with an object file to load in place of the one that is built in.
const OBJECT_ENV: &str = "OVERLAY_BPF_OBJECT";

/// When a flow that a world has from the start was last seen (`CLOCK_MONOTONIC`, nanoseconds).
pub const LONG_AGO: u64 = 1;

/// What was counted, by hook and verdict. What is zero is left out.
pub type Counters = BTreeMap<(Hook, u32), Counter>;

/// The programs and their maps.
pub struct Kernel<F: UserFamily = V4> {
    ebpf: Ebpf,
    maps: Maps<F>,
    pins: Pins,
    events: Events,
    counters: Counters,
    buffer: Vec<u8>,
    /// Whether the agent seems to live: from world to world it does and does not.
    alive: bool,
}

/// What a program did with a packet.
#[derive(Clone, Debug)]
pub struct Ran {
    /// How long it took, as the kernel measured it, with its timer.
    pub took: Duration,
    /// What it returned to tc.
    pub action: i32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// The programs for IPv6, which the agent does not carry.
#[repr(C, align(8))]
struct Ipv6<T: ?Sized>(T);
static IPV6: &Ipv6<[u8]> = &Ipv6(*include_bytes!(concat!(
    env!("OUT_DIR"),
    "/overlay-ipv6.bpf.o"
)));

/// The programs for pods of a family.
fn programs_for<F: Family>() -> Result<&'static [u8]> {
    const HINT: &str = "no programs: run `cargo xtask build` first";
    if F::ETHERTYPE == V4::ETHERTYPE {
        return object::bytes().context(HINT);
    }
    ensure!(!IPV6.0.is_empty(), HINT);
    Ok(&IPV6.0)
}

impl<F: UserFamily> Kernel<F> {
    /// Loads the programs and pins their maps.
    ///
    /// # Errors
    /// When they are not built, or the kernel does not take them.
    pub fn load(pins: &Pins) -> Result<Self> {
        pins.create()?;
        let mut loader = EbpfLoader::new();
        for name in maps::all::<F>() {
            loader.map_pin_path(name, pins.map(name));
        }
        for name in [F::MAPS.peers, F::MAPS.vteps, F::MAPS.flows] {
            loader.map_max_entries(name, ROOM);
        }
        // Another build of the programs, to compare with.
        let mut ebpf = match std::env::var_os(OBJECT_ENV) {
            Some(path) => loader.load_file(path),
            None => loader.load(programs_for::<F>()?),
        }
        .context("load the object")?;
        for hook in Hook::ALL {
            let program = ebpf.program_mut(programs::name(hook));
            match program.context("a hook has no program")? {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                other => bail!("{}: {:?}", hook.name(), other.prog_type()),
            }
            .with_context(|| format!("load {}", programs::name(hook)))?;
        }
        Ok(Self {
            ebpf,
            maps: Maps::open(pins)?,
            pins: pins.clone(),
            events: Events::open(pins)?,
            counters: Counters::new(),
            buffer: vec![0; LONGEST],
            alive: false,
        })
    }

    fn program(&self, hook: Hook) -> Result<&Program> {
        let program = self.ebpf.program(programs::name(hook));
        program.context("a hook has no program")
    }

    /// How many instructions the verifier walked through (Linux 5.16).
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn verified_instructions(&self) -> Result<Vec<(Hook, u32)>> {
        Hook::ALL
            .into_iter()
            .map(|hook| {
                let verified = self.program(hook)?.info()?.verified_instruction_count();
                Ok((hook, verified.context("no count (Linux 5.16)")?))
            })
            .collect()
    }

    /// Makes the maps hold what a world has.
    ///
    /// # Errors
    /// When the kernel does not take an entry.
    pub fn set_world(&mut self, world: &Snapshot<F>) -> Result<()> {
        // As the map is before an agent has written anything.
        let config = world.config.unwrap_or_else(Config::zeroed);
        self.maps.set_config(&config)?;
        self.alive = !self.alive;
        let until = |is_ahead| if is_ahead { u64::MAX } else { 0 };
        self.maps.set_heartbeat(Heartbeat {
            next_hops_until_ns: until(self.alive),
            leases_until_ns: until(!world.leases_are_stale),
        })?;
        self.maps.retire(world)?;
        self.set_devices(world)?;
        self.maps.fill(world)?;
        let since = Flow {
            last_seen_ns: LONG_AGO,
        };
        for (flow, seen) in self.maps.flows()? {
            if seen != since || !world.flows.contains(&flow) {
                self.maps.remove_flow(&flow)?;
            }
        }
        for flow in &world.flows {
            self.maps.add_flow(flow, since)?;
        }
        // Where there is none, the programs stop looking until one of them remembers one.
        self.maps.has_flows()?;
        self.holds(world)
    }

    /// Lets every pod of a world have a device. None has one: the loopback device of this
    /// namespace, which is always there, stands for all.
    fn set_devices(&mut self, world: &Snapshot<F>) -> Result<()> {
        const LOOPBACK: u32 = 1;
        let map = self.ebpf.map_mut(F::MAPS.devices);
        let mut devices = DevMapHash::try_from(map.context("no map of devices")?)?;
        let there = devices.keys().collect::<Result<BTreeSet<u32>, _>>()?;
        let vtep = world.config.map(|config| config.vtep_ifindex);
        let pods = world.pods.values().map(|pod| pod.ifindex);
        let wanted: BTreeSet<u32> = pods.chain(vtep.filter(|index| *index != 0)).collect();
        for ifindex in there.difference(&wanted) {
            devices.remove(*ifindex)?;
        }
        for ifindex in wanted.difference(&there) {
            devices.insert(*ifindex, LOOPBACK, None, 0)?;
        }
        Ok(())
    }

    /// Fails unless the maps hold what a world has: the programs write to nothing but flows and
    /// counters.
    ///
    /// # Errors
    /// When they hold anything else.
    pub fn holds(&self, world: &Snapshot<F>) -> Result<()> {
        let held = self.maps.dump()?;
        ensure!(
            held == *world,
            "the maps hold {held:?} instead of {world:?}"
        );
        Ok(())
    }

    /// Runs the program for the visit's hook on its packet; `None` for one that is too short for
    /// this kernel to make a socket buffer of.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn run(&mut self, visit: &Visit) -> Result<Option<Ran>> {
        let mut context = [0_u8; SK_BUFF_LEN];
        for (at, value) in [(IFINDEX, visit.ifindex), (GSO_SIZE, visit.gso_size)] {
            context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let options = TestRunOptions {
            data_in: Some(&visit.frame),
            data_out: Some(&mut buffer),
            ..TestRunOptions::default()
        };
        let ran = match self.program(visit.hook)? {
            Program::SchedClassifier(program) => program.test_run(TestRunOptions {
                ctx_in: Some(&context),
                ..options
            }),
            Program::Xdp(program) => program.test_run(options),
            other => bail!("{}: {:?}", visit.hook.name(), other.prog_type()),
        };
        self.buffer = buffer;
        match ran {
            Ok(ran) => Ok(Some(Ran {
                took: ran.duration,
                action: ran.return_value as i32,
                frame: self.buffer[..ran.data_size_out as usize].to_vec(),
            })),
            Err(_) if visit.frame.len() < SHORTEST => Ok(None),
            Err(error) => Err(error).context("run a program on a made-up packet"),
        }
    }

    /// What was counted since the last time.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn counted(&mut self) -> Result<Counters> {
        let now: Counters = self
            .maps
            .counters()?
            .into_iter()
            .map(|(hook, verdict, counter)| ((hook, verdict as u32), counter))
            .collect();
        let mut grown = now.clone();
        for (key, counter) in &mut grown {
            let then = self.counters.get(key).copied().unwrap_or_default();
            counter.packets -= then.packets;
            counter.bytes -= then.bytes;
        }
        grown.retain(|_, counter| *counter != Counter::default());
        self.counters = now;
        Ok(grown)
    }

    /// What the programs have told of since the last time.
    pub fn told(&mut self) -> Vec<PacketEvent> {
        self.events.by_ref().collect()
    }

    /// How many events found no room.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn lost(&self) -> Result<u64> {
        Ok(self.events.lost()?)
    }

    /// The maps as another process sees them.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub fn another(&self) -> Result<Maps<F>> {
        Ok(Maps::open(&self.pins)?)
    }

    /// Whether another process has changed the maps of peers since the last time.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn others_wrote(&mut self) -> Result<bool> {
        Ok(self.maps.look_at_peers()?)
    }

    /// The flows that the IP stack owns, and when each was last seen.
    ///
    /// # Errors
    /// When the flows cannot be read.
    pub fn flows(&self) -> Result<BTreeMap<FlowOrder<F>, u64>> {
        let flows = self.maps.flows()?;
        Ok(flows
            .into_iter()
            .map(|(key, flow)| (flow_order(&key), flow.last_seen_ns))
            .collect())
    }
}

/// A flow as something that can be sorted: its ends (address, port), its protocol.
pub type FlowOrder<F> = (End<F>, End<F>, u32);
type End<F> = (<F as Family>::Addr, u16);

/// See [`FlowOrder`].
pub fn flow_order<F: Family>(key: &FlowKey<F>) -> FlowOrder<F> {
    (
        (key.low, key.low_port),
        (key.high, key.high_port),
        key.protocol,
    )
}

/// The name of a counter.
pub fn counter_name((hook, verdict): (Hook, u32)) -> String {
    let verdict = Verdict::from_number(verdict);
    format!(
        "{} {}",
        hook.name(),
        verdict.map_or("?", |verdict| verdict.name())
    )
}
