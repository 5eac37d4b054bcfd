//! Helpers of these tests.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use overlay_tests::fast_path::{left_by_request, packets, wait_serving};
use overlay_tests::packet::{Frame, RawSocket};
use overlay_tests::traffic::{PATIENCE, pattern};
use overlay_tests::{Lab, Namespace, Options, Pod};

/// Bytes of a stream: many windows.
pub const STREAM: usize = 3_000_000;
/// The longest ordinary frame of the lab's underlay.
pub const UNDERLAY_FRAME: usize = 1514;
pub const QUIET: Duration = Duration::from_millis(100);

/// The longest frames that left the sender's node and that reached the receiver.
#[derive(Debug)]
pub struct Longest {
    pub wire: usize,
    pub receiver: usize,
}

/// Watches the wire and the receiving pod while `work` is done.
pub fn watch<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> Result<(T, Longest)> {
    let wire = RawSocket::open(&lab.node(1).namespace(), "eth0")?;
    let receiver = RawSocket::open(&lab.pod(2, 1).namespace(), "eth0")?;
    let answer = work()?;
    let longest = |socket: &RawSocket, wanted: fn(&Frame) -> bool| -> Result<usize> {
        let frames = socket.drain(QUIET)?;
        let lengths = frames.iter().filter(|frame| wanted(frame));
        Ok(lengths.map(|frame| frame.bytes.len()).max().unwrap_or(0))
    };
    let longest = Longest {
        wire: longest(&wire, |frame| frame.outgoing)?,
        receiver: longest(&receiver, |frame| !frame.outgoing)?,
    };
    Ok((answer, longest))
}

/// A lab in which every pod is on the fast path.
pub fn lab(name: &str) -> Result<Lab> {
    let lab = Lab::up(Options::for_test(name))?;
    lab.nodes().iter().try_for_each(wait_serving)?;
    Ok(lab)
}

/// Packets that the fast path carried from the first node's pods to the second's: encapsulated, and
/// decapsulated there or left to the kernel because of agents' flags.
pub fn carried(lab: &Lab) -> Result<(u64, u64)> {
    let receiver = lab.node(2);
    let mut arrived = packets(&receiver, "net_in", "decapsulated")?;
    for cause in left_by_request() {
        arrived += packets(&receiver, "net_in", cause)?;
    }
    Ok((packets(&lab.node(1), "pod_in", "encapsulated")?, arrived))
}

/// Switches offloads of a device.
pub fn ethtool(namespace: &Namespace, device: &str, features: &str) -> Result<()> {
    let line = format!("ethtool -K {device} {features}");
    namespace.run(line.split(' ')).map(drop)
}

/// An open TCP connection.
pub struct Flow {
    pub client: TcpStream,
    server: TcpStream,
}

impl Flow {
    /// A connection between the two sockets.
    pub fn new(client: TcpStream, server: TcpStream) -> Result<Self> {
        for stream in [&client, &server] {
            // The timeout is long enough for the retransmissions of path-MTU discovery.
            stream
                .set_read_timeout(Some(5 * PATIENCE))
                .context("set a timeout")?;
            stream
                .set_write_timeout(Some(5 * PATIENCE))
                .context("set a timeout")?;
        }
        Ok(Self { client, server })
    }

    /// A new connection between two pods.
    pub fn between(from: &Pod, to: &Pod) -> Result<Self> {
        let address = SocketAddr::from((to.address(), 0));
        let listener = to.namespace().inside(|| TcpListener::bind(address))??;
        let target = listener.local_addr()?;
        let client = from
            .namespace()
            .inside(|| TcpStream::connect_timeout(&target, PATIENCE))?
            .with_context(|| format!("connect to {target}"))?;
        Self::new(client, listener.accept()?.0)
    }

    /// Carries bytes from the client to the server and compares them.
    pub fn carry(&mut self, length: usize) -> Result<()> {
        let sent = pattern(length);
        let (client, server) = (&mut self.client, &mut self.server);
        let received = thread::scope(|scope| -> Result<Vec<u8>> {
            let reader = scope.spawn(move || -> std::io::Result<Vec<u8>> {
                let mut received = vec![0; length];
                server.read_exact(&mut received)?;
                Ok(received)
            });
            client.write_all(&sent).context("write")?;
            let received = reader.join().map_err(|_| anyhow!("the reader panicked"))?;
            received.context("read")
        })?;
        ensure!(received == sent, "{length} bytes arrived changed");
        Ok(())
    }
}
