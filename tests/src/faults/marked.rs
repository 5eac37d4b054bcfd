//! Packets from a single source, whose counts show how many programs each packet passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::scene::Scene;
use crate::frame::{IPV4, Ip, Mac, ethernet};
use crate::packet::RawSocket;
use crate::{Node, Pod, fast_path, wait_until};

/// Time between two packets: long enough for every queue on their way.
const EVERY: Duration = Duration::from_micros(100);
/// The cause by which packets with IP options, which no other source here sends, are left to the
/// kernel path and counted.
const CAUSE: &str = "options";
/// Four options of one byte that do nothing (RFC 791).
const OPTIONS: [u8; 4] = [1; 4];
/// Longest time until the last packets are counted.
const COUNTED: Duration = Duration::from_secs(5);

/// A stream of packets with IP options from the first pod of the first node.
pub(super) struct Marked {
    node: Node,
    before: u64,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
}

impl Marked {
    /// Starts the stream.
    pub(super) fn start(scene: &Scene<'_>) -> Result<Self> {
        let node = scene.node();
        let [from, to] = [1, 2].map(|number| scene.lab.pod(1, number));
        let ip = Ip {
            options: OPTIONS.to_vec(),
            ..Ip::udp(from.address(), to.address(), 9, &[])
        };
        let frame = ethernet(mac(&to)?, mac(&from)?, IPV4, &ip.packet());
        let socket = RawSocket::open_for_sending(&from.namespace(), "eth0")?;
        let before = counted(&node)?;
        let stop = Arc::new(AtomicBool::new(false));
        let sender = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut sent = 0;
                while !stop.load(Ordering::SeqCst) {
                    socket.send(&frame)?;
                    sent += 1;
                    thread::sleep(EVERY);
                }
                Ok(sent)
            }
        });
        Ok(Self {
            node,
            before,
            stop,
            sender,
        })
    }

    /// Ends the stream and checks that every packet has passed the pod's program exactly once.
    pub(super) fn ensure_met_once(self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        let sent = (self.sender.join()).map_err(|_| anyhow!("the sender panicked"))??;
        ensure!(sent > 0, "no packet was sent");
        let met = || counted(&self.node).map(|now| now - self.before);
        wait_until(&format!("{sent} packets to be counted"), COUNTED, || {
            met().is_ok_and(|met| met >= sent)
        })
        .with_context(|| format!("the pod's program has met {:?}", met()))?;
        let met = met()?;
        ensure!(met == sent, "{sent} packets have met programs {met} times");
        Ok(())
    }
}

/// Sends some packets and checks that each passes the pod's program exactly once.
pub(super) fn ensure_met_once(scene: &Scene<'_>) -> Result<()> {
    let marked = Marked::start(scene)?;
    scene.talk()?;
    marked.ensure_met_once()
}

fn counted(node: &Node) -> Result<u64> {
    fast_path::packets(node, "pod_in", CAUSE)
}

fn mac(pod: &Pod) -> Result<Mac> {
    let text = pod.run(["cat", "/sys/class/net/eth0/address"])?;
    let bytes: Vec<u8> = (text.trim().split(':'))
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("the MAC address {text:?}"))?;
    Mac::try_from(bytes).map_err(|bytes| anyhow!("a MAC address of {} bytes", bytes.len()))
}
