//! The contents of our images.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};

use super::Tree;
use crate::command;

/// Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";
/// The programs that our manifests and flannel's call, and those that people need in the container.
const APPLETS: &[&str] = &[
    "sh", "basename", "cat", "chmod", "cp", "dirname", "env", "grep", "ip", "ls", "mkdir", "mv",
    "ping", "rm", "sed", "sleep", "test", "true",
];
/// Further programs for the pods of tests.
const PROBE_APPLETS: &[&str] = &["httpd", "nc", "nslookup", "timeout", "wget"];
/// Debian's `dnsmasq-base`, for pods that serve names.
const DNS_SERVER: &str = "/usr/sbin/dnsmasq";
/// The packet-filter programs: iptables of both variants, each of which is one program under many
/// names, and nft.
const VARIANTS: [(&str, &str); 2] = [
    ("nft", "/usr/sbin/xtables-nft-multi"),
    ("legacy", "/usr/sbin/xtables-legacy-multi"),
];
const NFT: &str = "/usr/sbin/nft";
/// The names that the agent and the plugin call.
const XTABLES_NAMES: [&str; 6] = [
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];
/// The directory in which the starter finds the names of each variant.
const VARIANTS_DIR: &str = "usr/lib/overlay";
/// Our programs.
const PROGRAMS: [&str; 3] = ["overlayd", "overlayctl", "overlay-cni"];
const PROGRAMS_DIR: &str = "/opt/overlay";
/// Starts the agent with the variant of iptables that the host's own rules are in.
const STARTER: &str = include_str!("../../../deploy/flanneld.sh");
/// Further scripts that flannel's manifests call.
const SCRIPTS: [(&str, &str); 2] = [
    (
        "/opt/bin/install-conf",
        include_str!("../../../deploy/install-conf.sh"),
    ),
    (
        "/opt/bin/mk-docker-opts.sh",
        include_str!("../../../deploy/mk-docker-opts.sh"),
    ),
];

/// The PATH in both images.
pub const PATH: &str = "/opt/overlay:/usr/sbin:/bin";
/// The program that the overlay's image starts.
pub const ENTRYPOINT: &str = "/opt/bin/flanneld";

/// The overlay: agent, operator's tool and plugin from `bin_dir` under the paths that both of
/// flannel's images have, the packet-filter programs with the libraries that they load, and a
/// shell.
///
/// There are no certificate authorities, because those of an API server and of an etcd are separate
/// files.
///
/// # Errors
/// When a program or a library is missing.
pub(super) fn overlay(bin_dir: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    shell(&mut tree, APPLETS)?;
    for name in PROGRAMS {
        let place = Path::new(PROGRAMS_DIR).join(name);
        tree.program(place, stripped(&bin_dir.join(name))?)?;
    }
    tree.program(ENTRYPOINT, STARTER)?;
    for (place, script) in SCRIPTS {
        tree.program(place, script)?;
    }
    tree.link("/flannel", format!("{PROGRAMS_DIR}/overlay-cni"))?;

    let mut loaded: Vec<PathBuf> = PROGRAMS.iter().map(|name| bin_dir.join(name)).collect();
    for (variant, program) in VARIANTS {
        tree.copy(Path::new(program), program)?;
        loaded.push(program.into());
        for name in XTABLES_NAMES {
            tree.link(format!("{VARIANTS_DIR}/{variant}/{name}"), program)?;
        }
    }
    for name in XTABLES_NAMES {
        tree.link(format!("usr/sbin/{name}"), VARIANTS[0].1)?;
    }
    tree.copy(Path::new(NFT), NFT)?;
    loaded.push(NFT.into());
    // iptables shows foreign rules only with the extension of each match and target.
    let extensions = extensions()?;
    for extension in &extensions {
        tree.copy(extension, extension)?;
    }
    loaded.extend(extensions);
    for library in shared_libraries(&loaded)? {
        tree.copy(&library, &library)?;
    }
    // iptables-legacy locks /run/xtables.lock; the agent's own files are mounted here too.
    tree.directory("/run", 0o755)?;
    tree.directory("/tmp", 0o1777)?;
    Ok(tree)
}

/// The files for pods of tests: a shell, servers and clients. The sandbox has the same image.
///
/// # Errors
/// When busybox or dnsmasq is missing.
pub fn probe() -> Result<Tree> {
    let mut tree = Tree::default();
    shell(&mut tree, APPLETS)?;
    for applet in PROBE_APPLETS {
        tree.link(format!("bin/{applet}"), "busybox")?;
    }
    tree.copy(Path::new(DNS_SERVER), DNS_SERVER)
        .context("dnsmasq-base is missing: `cargo xtask setup`")?;
    for library in shared_libraries(&[DNS_SERVER.into()])? {
        tree.copy(&library, &library)?;
    }
    // dnsmasq looks up the user that it has to run as.
    tree.file("/etc/passwd", "root:x:0:0::/:/bin/sh\n")?;
    tree.file("/etc/group", "root:x:0:\n")?;
    tree.directory("/www", 0o755)?;
    tree.directory("/tmp", 0o1777)?;
    Ok(tree)
}

/// A shell, with other small programs in the same file.
pub(super) fn shell(tree: &mut Tree, applets: &[&str]) -> Result<()> {
    tree.copy(Path::new(BUSYBOX), "bin/busybox")
        .context("busybox-static is missing: `cargo xtask setup`")?;
    for applet in applets {
        tree.link(format!("bin/{applet}"), "busybox")?;
    }
    Ok(())
}

/// A program without its debugging information.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    // Several images may be made at the same time.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("overlay-stripped-{}-{number}", std::process::id());
    let bare = std::env::temp_dir().join(name);
    let arguments = [OsStr::new("-o"), bare.as_os_str(), program.as_os_str()];
    command::run("strip", arguments)?;
    let content = fs::read(&bare).with_context(|| format!("read {}", bare.display()))?;
    fs::remove_file(&bare).with_context(|| format!("remove {}", bare.display()))?;
    Ok(content)
}

/// The modules of iptables: where its library looks for them, which differs between architectures.
fn extensions() -> Result<Vec<PathBuf>> {
    let place = format!("/usr/lib/{}-linux-gnu/xtables", std::env::consts::ARCH);
    let entries = fs::read_dir(&place).with_context(|| format!("read {place}"))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {place}"))?.path();
        if path.extension().is_some_and(|end| end == "so") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The shared libraries that programs and modules load, the loader included, where the loader looks
/// for them.
///
/// # Errors
/// When one is missing.
pub fn shared_libraries(programs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    let output = command.args(programs).output().context("start `ldd`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let missing = text.lines().find(|line| line.contains("not found"));
    ensure!(missing.is_none(), "a library is missing: {missing:?}");
    // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
    let path = |line: &str| {
        let line = line.trim();
        let line = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = line.split_once(" (")?.0;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    let mut found: Vec<PathBuf> = text.lines().filter_map(path).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfile_makes_the_same_image() {
        let file = include_str!("../../../deploy/Dockerfile");
        for line in [
            format!("ENV PATH={PATH}"),
            format!("ENTRYPOINT [\"{ENTRYPOINT}\"]"),
        ] {
            assert!(file.lines().any(|found| found == line), "{line}");
        }
    }
}
