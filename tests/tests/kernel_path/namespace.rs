//! Network namespaces for tests.

use std::fs::{self, File};
use std::future::Future;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use overlay_tests::packet::RawSocket;

/// Runs a test in a separate network namespace, on a separate thread.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces: run it as root"
    );
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare the network namespace");
        run("ip link set lo up");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(test());
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a command line, which must succeed, in the namespace of this thread.
pub fn run(line: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", line])
        .output()
        .expect("run a shell");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{line}: {stderr}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Another namespace, held open by a sleeping process.
pub struct Namespace(Child);

impl Namespace {
    pub fn new() -> Self {
        let own = fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        let mut command = Command::new("unshare");
        let child = command
            .args(["--net", "sleep", "300"])
            .spawn()
            .expect("run unshare");
        let namespace = Self(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read_link(namespace.path()).is_ok_and(|found| found == own) {
            assert!(Instant::now() < deadline, "unshare takes too long");
            thread::sleep(Duration::from_millis(5));
        }
        namespace.run("ip link set lo up");
        namespace
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Runs a command line, which must succeed, in that namespace.
    pub fn run(&self, line: &str) -> String {
        run(&format!("nsenter --net={} sh -c '{line}'", self.path()))
    }

    /// Sends a frame, written as hexadecimal digits, from a device of that namespace.
    pub fn send(&self, device: &str, frame: &str) {
        let bytes: Vec<u8> = (0..frame.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&frame[at..at + 2], 16).expect("hexadecimal digits"))
            .collect();
        let process = i32::try_from(self.pid()).expect("a process id");
        let namespace = overlay_tests::Namespace::of_process("a pod", process);
        RawSocket::open_for_sending(&namespace, device)
            .and_then(|socket| socket.send(&bytes))
            .expect("send a frame");
    }

    /// Runs code in that namespace.
    pub fn within<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(self.path()).expect("open the namespace");
        let body = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            code()
        };
        thread::spawn(body).join().expect("code in the namespace")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This node is 192.0.2.1 with 10.244.1.0/24, the peer 192.0.2.2 with 10.244.2.0/24, joined by a
/// veth pair that is called `underlay` at both ends. The peer is configured by hand, as flannel
/// would do it.
pub fn node_with_peer() -> Namespace {
    let peer = Namespace::new();
    run(&format!(
        "ip link add underlay type veth peer name underlay netns {}",
        peer.pid()
    ));
    run("ip addr add 192.0.2.1/24 dev underlay && ip link set underlay up");
    peer.run("ip addr add 192.0.2.2/24 dev underlay && ip link set underlay up");
    peer.run(
        "ip link add flannel.1 address 02:00:00:00:00:02 mtu 1450 type vxlan id 1 dstport 8472 \
         local 192.0.2.2 dev underlay nolearning && ip addr add 10.244.2.0/32 dev flannel.1 && \
         ip link set flannel.1 up && \
         ip neigh add 10.244.1.0 lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent && \
         bridge fdb add 02:00:00:00:00:01 dst 192.0.2.1 dev flannel.1 self permanent && \
         ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
    );
    peer
}
