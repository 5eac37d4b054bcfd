//! From flags to a running node: store, underlay, lease, then the reconciler.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;
use std::time::Duration;

use crate::backend;
use crate::config::flags::ServicesMode;
use crate::config::pool::SubnetPool;
use crate::config::{AgentFlags, SubnetEnv};
use crate::kernel::interface::{self, Underlay};
use crate::kernel::{self, Kernel};
use crate::liveness::Liveness;
use crate::mac::MacAddr;
use crate::observe::agent_file::{AgentFile, AgentLock, RefusedServices};
use crate::per_family::PerFamily;
use crate::privilege::{self, Capability};
use crate::store::{self, Store};
use anyhow::{Context as _, bail};
use ipnet::IpNet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::announcer;
use super::health::Health;
use super::path_check::PathCheck;
use super::plan::attributes;
use super::reconciler::{Reconciler, Start};
use super::services;
use super::settings::{self, Settings};
use super::watchdog::{self, PATIENCE};

/// Pause before another attempt at a step that has failed.
const RETRY: Duration = Duration::from_secs(1);

/// Runs the agent until `cancel`.
pub async fn run(flags: &AgentFlags, cancel: CancellationToken) -> anyhow::Result<()> {
    if let Some(missing) = privilege::missing(&[Capability::NetAdmin]) {
        bail!("overlayd lacks {missing}, without which it cannot change the kernel's network");
    }
    let run_dir = &flags.node.run_dir;
    let Some(_lock) = AgentLock::take(run_dir)? else {
        bail!(
            "another overlayd runs on this node: it holds the lock in {}",
            run_dir.display()
        );
    };
    services::take_over(flags);
    let liveness = Liveness::default();
    tokio::spawn(watchdog::feed(liveness.clone()));
    let path_check = PathCheck::spawn();
    liveness.expect("path check", path_check.pulse(), PATIENCE);
    let (services_stand, services_shown) = watch::channel(services::Standing::default());
    let source = store::ServiceFollower::default();
    let services_known = source.subscribe();
    let refused_services = services::refused(services_known.clone());
    let health = Health::serve(
        flags,
        settings::pins(flags),
        liveness.clone(),
        path_check.paths(),
        services_shown.clone(),
        refused_services.clone(),
    )
    .await?;
    let store = Arc::new(settings::open_store(flags).context("open the store")?);
    if store.has_readers() {
        tokio::spawn(announcer::run(
            Arc::clone(&store),
            health.subscribe(),
            flags.store.kube.set_node_network_unavailable,
            cancel.clone(),
        ));
    }
    let Some(config) = until(
        &cancel,
        &health,
        "read the network configuration",
        async || store.network_config().await.map_err(anyhow::Error::from),
    )
    .await
    else {
        return Ok(());
    };
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    let Some(said) = until(
        &cancel,
        &health,
        "ask the store about this node",
        async || Ok(Said::ask(&store).await?),
    )
    .await
    else {
        return Ok(());
    };
    tracing::info!(network = %config.network(), backend = ?config.backend, "network configuration");
    let mut settings = Settings::new(flags, config);
    if let Some(public_address) = said.public_address {
        settings.criteria.public_address = Some(public_address);
    }
    let Some(found) = until(
        &cancel,
        &health,
        "look at the kernel's network",
        async || {
            match find(&settings, said.mac).await {
                // The store may answer later; any other error is for people to mend.
                Err(error) if is_late(&error) => Err(error),
                found => Ok(found),
            }
        },
    )
    .await
    else {
        return Ok(());
    };
    let (kernel, underlay, mac) = found?;
    let _namespace = claim_namespace()?;
    for former in kernel
        .remove_former(settings.device.as_deref(), settings.network())
        .await?
    {
        tracing::warn!(
            device = former,
            "removed: the network has another VNI or backend now"
        );
    }
    let previous = previous_subnets(flags);
    let attributes = attributes(&settings, &underlay, mac)?;
    let Some(lease) = until(&cancel, &health, "take a lease", async || {
        store
            .acquire(&settings.config, attributes.clone(), previous)
            .await
            .map_err(anyhow::Error::from)
    })
    .await
    else {
        return Ok(());
    };
    tracing::info!(subnet = %lease.subnets, "lease");

    let file = AgentFile {
        pid: std::process::id(),
        device: settings.device.clone(),
        health: health.address(),
        subnet_file: flags.node.subnet_file.clone(),
        leases_as_of: None,
        rejected: Vec::new(),
        early_refusal: None,
        foreign_programs: None,
        network_policies: None,
        services: None,
        refused_services: RefusedServices::default(),
        unreachable: Vec::new(),
        unchecked: None,
    };
    file.write(run_dir)?;

    liveness.expect("store keeper", store.pulse(), PATIENCE);
    let keeper = tokio::spawn({
        let (store, cancel) = (Arc::clone(&store), cancel.clone());
        async move { store.run(cancel).await }
    });
    // A round removes what no lease asks for, so there is none before all leases are known:
    // Kubernetes gives a lease before it lists the others', and what an earlier agent has
    // programmed must stay.
    let mut leases = store.subscribe();
    tokio::select! {
        () = cancel.cancelled() => {}
        known = leases.wait_for(|state| state.synced) => drop(known?),
    }
    let start = Start {
        underlay,
        lease,
        mac,
        file,
    };
    if flags.node.services != ServicesMode::Off {
        let (store, cancel) = (Arc::clone(&store), cancel.clone());
        let pods = settings.config.pools.map(SubnetPool::network);
        tokio::spawn(async move { source.run(&store, pods, cancel).await });
    }
    let (opted_out, are_opted_out) = watch::channel(BTreeSet::new());
    tokio::spawn(services::run(
        flags.clone(),
        services_known,
        are_opted_out,
        services_stand,
        cancel.clone(),
    ));
    let reconciler = Reconciler::new(
        settings,
        start,
        kernel,
        store,
        health,
        path_check,
        services::Channels {
            standing: services_shown,
            refused: refused_services,
            opted_out,
        },
    );
    liveness.expect("reconciler", reconciler.pulse(), PATIENCE);
    watchdog::supervise(reconciler.run(cancel.clone()), keeper, &cancel).await
}

/// Makes this the only agent of its network namespace, for as long as the process lives. Two agents
/// with run directories of their own would write each other's guard, packet-filter rules and pins.
fn claim_namespace() -> anyhow::Result<UnixListener> {
    // An abstract name is the network namespace's, and goes with the process.
    let name = SocketAddr::from_abstract_name("overlay/agent")?;
    match UnixListener::bind_addr(&name) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
            "another overlayd runs in this network namespace, with another --run-dir: stop one of \
             them, or give each a network namespace of its own"
        ),
        claimed => claimed.context("bind the abstract socket overlay/agent"),
    }
}

/// The store's knowledge of this node before the agent has published anything.
struct Said {
    /// The address that an operator wants to be this node's.
    public_address: Option<IpAddr>,
    /// The MAC address that the other nodes know from an earlier agent.
    mac: Option<MacAddr>,
}

impl Said {
    async fn ask(store: &Store) -> Result<Self, store::Error> {
        let earlier = store.earlier_attributes().await?;
        Ok(Self {
            public_address: match store.node_public_ip().await {
                Err(store::Error::NotAssigned { .. }) => None,
                answer => answer?,
            },
            mac: earlier.and_then(|attributes| backend::mac_of(&attributes)),
        })
    }
}

/// Repeats `attempt` until it succeeds or until `cancel`; logs the cause of each failure.
async fn until<T>(
    cancel: &CancellationToken,
    health: &Health,
    what: &str,
    mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
) -> Option<T> {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return None,
            result = attempt() => match result {
                Ok(value) => return Some(value),
                Err(error) => {
                    if health.wait_for(format!("cannot {what}: {error:#}")) {
                        tracing::warn!("cannot {what}, trying again: {error:#}");
                    }
                }
            },
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Connects to the kernel, chooses the underlay's device and finds the MAC address of the
/// backend's.
async fn find(
    settings: &Settings,
    earlier: Option<MacAddr>,
) -> anyhow::Result<(Kernel, Underlay, MacAddr)> {
    let kernel = Kernel::connect()?;
    let network = settings.config.network();
    let underlay = kernel
        .select_underlay(&settings.criteria, network)
        .await
        .context("choose the underlay's device")?;
    tracing::info!(
        device = %underlay.name,
        address = %underlay.address,
        public = %underlay.public_address,
        mtu = underlay.mtu,
        "underlay"
    );
    if !kernel
        .has_address(underlay.ifindex, underlay.public_address)
        .await?
    {
        let by_flag = settings.flags.underlay.public_ip.map(IpAddr::from);
        let asked_by = if by_flag == settings.criteria.public_address {
            "--public-ip"
        } else {
            "the Node's annotation node-public-ip:"
        };
        bail!(
            "{asked_by} {}: {} does not have this address; nodes behind address translation are \
            not supported",
            underlay.public_address,
            underlay.name
        );
    }
    let mac = match &settings.device {
        Some(device) => device_mac(&kernel, device, earlier).await?,
        None => MacAddr::default(),
    };
    Ok((kernel, underlay, mac))
}

/// Whether the kernel was too busy to answer.
fn is_late(error: &anyhow::Error) -> bool {
    let kernel = match error.downcast_ref() {
        Some(interface::Error::Kernel(error)) => Some(error),
        _ => error.downcast_ref(),
    };
    matches!(kernel, Some(kernel::Error::Deadline { .. }))
}

/// The MAC address of the VXLAN device: an existing one keeps its own, and one that is made anew
/// gets that of the earlier one, because peers know it.
async fn device_mac(
    kernel: &Kernel,
    device: &str,
    earlier: Option<MacAddr>,
) -> anyhow::Result<MacAddr> {
    let link = kernel.observe_device(device).await?;
    Ok(match link.filter(|link| link.vxlan.is_some()) {
        Some(link) => link.mac,
        None => earlier.unwrap_or_else(|| {
            let mut bytes: [u8; 6] = rand::random();
            // Unicast, locally administered.
            bytes[0] = bytes[0] & 0xfe | 0x02;
            MacAddr(bytes)
        }),
    })
}

/// The subnets of the last time, if their file can be read.
fn previous_subnets(flags: &AgentFlags) -> Option<PerFamily<IpNet>> {
    let path = &flags.node.subnet_file;
    match SubnetEnv::read(path) {
        Ok(env) => Some(env.nets.map(|nets| nets.subnet)),
        Err(error) => {
            if path.exists() {
                tracing::warn!("the previous subnet is not known, any will do: {error}");
            }
            None
        }
    }
}
