//! Bad input for the plugin from a container runtime, or from its disk.

use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use overlay_tests::{Lab, Node, StoreKind};
use serde_json::Value;

use crate::lab;
use crate::witness::{all_is_well, talks};

/// The plugin's error: JSON with a code and a text, and a bad exit status.
pub(super) fn cni_error(output: &Output) -> Result<Value> {
    let answer = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(!complaint.contains("panicked"), "{complaint}");
    ensure!(
        output.status.code() == Some(1),
        "{:?}: {answer}",
        output.status
    );
    let error: Value = serde_json::from_str(&answer).with_context(|| answer.to_string())?;
    ensure!(
        error["code"].is_u64() && error["msg"].is_string(),
        "{error}"
    );
    Ok(error)
}

/// Calls a node's plugin with these variables and this configuration.
pub(super) fn call(node: &Node, variables: &[(&str, &str)], input: &[u8]) -> Result<Output> {
    let namespace = node.namespace();
    let mut plugin = namespace.command("/opt/cni/bin/flannel");
    plugin.env("CNI_PATH", "/opt/cni/bin").current_dir("/");
    plugin.envs(variables.iter().copied());
    plugin
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = namespace.start(&mut plugin)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that refuses early does not read its whole input.
        let _ = stdin.write_all(input);
    }
    Ok(child.wait_with_output()?)
}

#[test]
fn bad_cni_calls_are_answered_and_leave_nothing_behind() -> Result<()> {
    let lab = lab("bad-cni", 1, StoreKind::Dir)?;
    let node = lab.node(1);
    let talks = talks(&lab)?;
    let addresses = || node.run(["ls", "/var/lib/cni/networks/cbr0"]);
    let before = addresses()?;
    let netns = lab.pod(1, 1).namespace().path();
    let good = r#"{"name":"cbr0","type":"flannel","cniVersion":"1.0.0"}"#;
    let call = |variables: &[(&str, &str)], input: &[u8]| call(&node, variables, input);
    let netns = netns.to_str().context("a path")?;
    let add = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "bad"),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth9"),
    ];
    let deep = "[".repeat(100_000);
    let huge = format!(
        r#"{{"name":"cbr0","cniVersion":"1.0.0","x":"{}"}}"#,
        "x".repeat(20_000_000)
    );
    let deep = format!(r#"{{"name":"cbr0","cniVersion":"1.0.0","x":{deep}"#);
    for (what, input) in [
        ("nothing", &b""[..]),
        ("garbage", b"garbage"),
        ("binary", b"\xff\xfe\x00\x01"),
        ("an array", b"[]"),
        ("null", b"null"),
        ("no name", br#"{"cniVersion":"1.0.0"}"#),
        ("an empty name", br#"{"name":"","cniVersion":"1.0.0"}"#),
        (
            "a path for a name",
            br#"{"name":"../x","cniVersion":"1.0.0"}"#,
        ),
        ("a number for a name", br#"{"name":5,"cniVersion":"1.0.0"}"#),
        (
            "a future version",
            br#"{"name":"cbr0","cniVersion":"9.9.9"}"#,
        ),
        ("no version's text", br#"{"name":"cbr0","cniVersion":"x"}"#),
        (
            "a wrong delegate",
            br#"{"name":"cbr0","cniVersion":"1.0.0","delegate":5}"#,
        ),
        (
            "a wrong bridge",
            br#"{"name":"cbr0","cniVersion":"1.0.0","delegate":{"bridge":"a/b"}}"#,
        ),
        (
            "a wrong MTU",
            br#"{"name":"cbr0","cniVersion":"1.0.0","delegate":{"mtu":-5}}"#,
        ),
        (
            "wrong ranges",
            br#"{"name":"cbr0","cniVersion":"1.0.0","ipam":{"ranges":[[{"subnet":"x"}]]}}"#,
        ),
        (
            "no subnet file",
            br#"{"name":"cbr0","cniVersion":"1.0.0","subnetFile":"/run/none.env"}"#,
        ),
        (
            "a directory for a subnet file",
            br#"{"name":"cbr0","cniVersion":"1.0.0","subnetFile":"/run"}"#,
        ),
        ("depth", deep.as_bytes()),
    ] {
        let output = call(&add, input)?;
        cni_error(&output).with_context(|| format!("{what}: {output:?}"))?;
    }
    for (what, variable, value) in [
        ("an unknown command", "CNI_COMMAND", "EXPLODE"),
        ("an empty command", "CNI_COMMAND", ""),
        ("no container", "CNI_CONTAINERID", ""),
        ("a path for a container", "CNI_CONTAINERID", "../../etc"),
        ("no namespace", "CNI_NETNS", ""),
        ("a missing namespace", "CNI_NETNS", "/run/netns/none"),
        ("a file for a namespace", "CNI_NETNS", "/etc/passwd"),
        ("the host's namespace", "CNI_NETNS", "/proc/self/ns/net"),
        ("no interface", "CNI_IFNAME", ""),
        ("a long interface", "CNI_IFNAME", "sixteen-letters!"),
        ("a path for an interface", "CNI_IFNAME", "a/b"),
        ("an interface that is there", "CNI_IFNAME", "eth0"),
    ] {
        let mut variables = add;
        for pair in variables.iter_mut().filter(|(name, _)| *name == variable) {
            pair.1 = value;
        }
        let output = call(&variables, good.as_bytes())?;
        cni_error(&output).with_context(|| format!("{what}: {output:?}"))?;
    }
    ensure!(
        addresses()? == before,
        "addresses are left: {}",
        addresses()?
    );

    // Many unusual inputs are valid: the result is that of an ordinary configuration.
    let outside = lab.namespace("outside")?.path();
    let mut add = add;
    add[2].1 = outside.to_str().context("a path")?;
    let output = call(&add, huge.as_bytes())?;
    ensure!(output.status.success(), "{output:?}");
    let mut delete = add;
    delete[0].1 = "DEL";
    for _ in 0..2 {
        ensure!(
            call(&delete, good.as_bytes())?.status.success(),
            "DEL fails"
        );
    }
    ensure!(
        addresses()? == before,
        "addresses are left: {}",
        addresses()?
    );
    allocations(&lab, &node)?;
    all_is_well(&lab, talks)
}

/// Files of addresses that no existing container has, or that are malformed.
fn allocations(lab: &Lab, node: &Node) -> Result<()> {
    const DIR: &str = "/var/lib/cni/networks/cbr0";
    let subnet = node.subnet()?.network().octets();
    let address = |last: u8| format!("{DIR}/{}.{}.{}.{last}", subnet[0], subnet[1], subnet[2]);
    let script = [
        format!("printf 'dead-container\\r\\neth0' > {}", address(20)),
        format!(": > {}", address(21)),
        format!("head -c 4096 /dev/urandom > {}", address(22)),
        format!("mkdir {}", address(23)),
        format!("printf nonsense > {DIR}/last_reserved_ip.0"),
        format!("printf x > {DIR}/not-an-address"),
        format!("printf x > {DIR}/999.1.1.1"),
    ];
    node.run(["sh", "-ec", &script.join("\n")])?;
    let pod = lab.add_pod(1)?;
    let answer = pod.exec(["ping", "-c1", "-W2", &lab.pod(1, 1).address().to_string()])?;
    ensure!(
        answer.status.success(),
        "a pod made among them has no network"
    );
    // Garbage collection frees the addresses that the runtime does not know, and nothing else. It
    // names those that it cannot free.
    let Err(complaint) = node.collect_garbage() else {
        bail!("a directory was freed");
    };
    let complaint = format!("{complaint:#}");
    ensure!(
        complaint.contains("Is a directory") && complaint.contains(&address(23)),
        "{complaint}"
    );
    let exists = |path: &str| -> Result<bool> {
        let path = Path::new(path).to_owned();
        node.namespace().inside(move || path.exists())
    };
    if exists(&address(20))? {
        bail!("the dead container's address is still taken");
    }
    for pod in node.pods() {
        ensure!(
            exists(&format!("{DIR}/{}", pod.address()))?,
            "{} lost its address",
            pod.name()
        );
    }
    pod.remove()
}
