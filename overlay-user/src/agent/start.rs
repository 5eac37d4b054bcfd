//! From flags to a running node: store, underlay, lease, then the reconciler.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{AgentFlags, SubnetEnv};
use crate::kernel::interface::{self, Underlay};
use crate::kernel::{self, Kernel};
use crate::liveness::Liveness;
use crate::mac::MacAddr;
use crate::observe::agent_file::{AgentFile, AgentLock};
use crate::privilege::{self, Capability};
use anyhow::{Context as _, bail};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use super::health::Health;
use super::path_check::PathCheck;
use super::plan::attributes;
use super::reconciler::{Reconciler, Start};
use super::settings::{self, Settings};
use super::watchdog::{self, PATIENCE};

/// How long to wait before asking again for what is not there yet.
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
    let liveness = Liveness::default();
    tokio::spawn(watchdog::feed(liveness.clone()));
    let path_check = PathCheck::spawn();
    liveness.expect("path check", path_check.heartbeat(), PATIENCE);
    let health = Health::serve(
        flags,
        settings::pins(flags),
        liveness.clone(),
        path_check.paths(),
    )
    .await?;
    let store = Arc::new(settings::open_store(&flags.store).context("open the store")?);
    let Some(config) = until(&cancel, "read the network configuration", async || {
        store.network_config().await.map_err(anyhow::Error::from)
    })
    .await
    else {
        return Ok(());
    };
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    tracing::info!(network = %config.network(), vni = config.vxlan.vni, port = config.vxlan.port, "network configuration");
    let settings = Settings::new(flags, config);
    let Some(found) = until(&cancel, "look at the kernel's network", async || {
        match find(&settings).await {
            // It may answer later; anything else is for people to mend.
            Err(error) if is_late(&error) => Err(error),
            found => Ok(found),
        }
    })
    .await
    else {
        return Ok(());
    };
    let (kernel, underlay, mac) = found?;
    let _namespace = claim_namespace()?;
    for former in kernel
        .remove_former(&settings.device, settings.network())
        .await?
    {
        tracing::warn!(device = former, "removed: the network has another VNI now");
    }
    let previous = previous_subnet(flags);
    let attributes = attributes(&underlay, settings.config.vxlan.vni, mac)?;
    let Some(lease) = until(&cancel, "take a lease", async || {
        store
            .acquire(&settings.config, attributes.clone(), previous)
            .await
            .map_err(anyhow::Error::from)
    })
    .await
    else {
        return Ok(());
    };
    tracing::info!(subnet = %lease.subnet, "lease");

    let file = AgentFile {
        pid: std::process::id(),
        device: settings.device.clone(),
        health: health.address(),
        subnet_file: flags.node.subnet_file.clone(),
        rejected: Vec::new(),
        early_refusal: None,
        foreign_programs: None,
        network_policies: None,
        unreachable: Vec::new(),
        unchecked: None,
    };
    file.write(run_dir)?;

    liveness.expect("store keeper", store.heartbeat(), PATIENCE);
    let keeper = tokio::spawn({
        let (store, cancel) = (Arc::clone(&store), cancel.clone());
        async move { store.run(cancel).await }
    });
    let start = Start {
        underlay,
        lease,
        mac,
        file,
    };
    let reconciler = Reconciler::new(settings, start, kernel, store, health, path_check);
    liveness.expect("reconciler", reconciler.heartbeat(), PATIENCE);
    watchdog::supervise(reconciler.run(cancel.clone()), keeper, &cancel).await
}

/// Makes this the only agent of its network namespace, for as long as the process lives. Two agents with
/// run directories of their own would write each other's guard, packet-filter rules and pins.
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

/// Tries until it works, with the cause in the log, or until `cancel`.
async fn until<T>(
    cancel: &CancellationToken,
    what: &str,
    mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
) -> Option<T> {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return None,
            result = attempt() => match result {
                Ok(value) => return Some(value),
                Err(error) => tracing::warn!("cannot {what}, trying again: {error:#}"),
            },
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Connects to the kernel, chooses the underlay's device and finds the VXLAN device's MAC address.
async fn find(settings: &Settings) -> anyhow::Result<(Kernel, Underlay, MacAddr)> {
    let kernel = Kernel::connect()?;
    let network = settings.config.network();
    let underlay = kernel
        .select_underlay(&settings.criteria, network)
        .await
        .context("choose the underlay's device")?;
    tracing::info!(device = %underlay.name, address = %underlay.address, public = %underlay.public_address, mtu = underlay.mtu, "underlay");
    if !kernel
        .has_address(underlay.ifindex, underlay.public_address)
        .await?
    {
        bail!(
            "--public-ip {}: {} does not have this address; nodes behind address translation are not supported",
            underlay.public_address,
            underlay.name
        );
    }
    let mac = device_mac(&kernel, &settings.device, network).await?;
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

/// The MAC address of the VXLAN device: an existing one keeps its own, for peers know it.
async fn device_mac(kernel: &Kernel, device: &str, network: IpNet) -> anyhow::Result<MacAddr> {
    let observed = kernel.observe(device, network).await?;
    Ok(
        match observed.device.filter(|device| device.vxlan.is_some()) {
            Some(device) => device.mac,
            None => {
                let mut bytes: [u8; 6] = rand::random();
                // Unicast, locally administered.
                bytes[0] = bytes[0] & 0xfe | 0x02;
                MacAddr(bytes)
            }
        },
    )
}

/// The subnet of the last time, if its file can be read.
fn previous_subnet(flags: &AgentFlags) -> Option<IpNet> {
    let path = &flags.node.subnet_file;
    match SubnetEnv::read(path) {
        Ok(env) => env.subnet,
        Err(error) => {
            if path.exists() {
                tracing::warn!("the previous subnet is not known, any will do: {error}");
            }
            None
        }
    }
}
