//! The programs inside a machine: tests, the overlay's binaries, and the programs that these call,
//! with the libraries of all of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use overlay_tests::command;
use overlay_tests::image::shared_libraries;
use overlay_tests::interrupt;

use crate::{shell, workspace};

/// The tests that run in every kernel: those made for it, and the comparison of the programs with
/// the decision.
pub const TESTS: &[&str] = &[KERNELS, PROGRAMS];
/// The programs made for the kernel.
const KERNELS: &str = "kernels";
/// The comparison of the programs with the decision.
pub const PROGRAMS: &str = "programs";
/// The first process.
const INIT: &str = "vm-init";
/// The overlay's binaries, as built by `cargo xtask build`.
const BINARIES: &[&str] = &["overlayd", "overlay-cni", "overlayctl"];
/// The path of the first process in a machine.
pub const INIT_PATH: &str = "/init";
/// The directory of the other programs in a machine.
pub const BIN: &str = "/vm/bin";

/// Programs that agents, labs and tests call.
const TOOLS: &[&str] = &[
    "ip",
    "tc",
    "nft",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "bpftool",
    "wg",
];
/// Further programs that end-to-end tests call, some of which busybox has with fewer options.
const TOOLS_OF_SUITE: &[&str] = &[
    "arptables",
    "bash",
    "bridge",
    "conntrack",
    "etcd",
    "etcdctl",
    "ethtool",
    "find",
    "flock",
    "ip6tables",
    "ip6tables-restore",
    "ip6tables-save",
    "iperf3",
    "iptables-legacy",
    "iptables-legacy-restore",
    "iptables-legacy-save",
    "iptables-nft",
    "iptables-nft-restore",
    "iptables-nft-save",
    "mount",
    "nsenter",
    "nstat",
    "openssl",
    "ping",
    "setpriv",
    "ss",
    "stat",
    "sysctl",
    "systemd-analyze",
    "tcpdump",
    "touch",
    "traceroute",
    "umount",
    "unshare",
    "xtables-legacy-multi",
];
/// Further files that end-to-end tests need: reference plugins of CNI, a clock that tests set,
/// systemd with its units, settings of OpenSSL.
const TREES_OF_SUITE: &[&str] = &[
    "/usr/lib/cni",
    "/usr/lib/x86_64-linux-gnu/faketime",
    "/lib/systemd/systemd",
    "/lib/systemd/system",
    "/etc/ssl/openssl.cnf",
    "/usr/lib/ssl/openssl.cnf",
];
/// Directories of the repository that end-to-end tests read while they run.
const SOURCES_OF_SUITE: &[&str] = &["deploy"];
/// All other programs that a shell calls.
const BUSYBOX: &str = "busybox";
/// The shell is this machine's own, because busybox's shell prefers its built-in tools to those in
/// the PATH, and its `ip` has few commands.
const SHELL: &str = "sh";
/// Packets that once showed a difference, stored in the repository.
const RECORDINGS: &str = "tests/corpus/programs";
/// Extensions that iptables loads by name.
const XTABLES: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// The first bytes of programs and libraries.
const MAGIC: &[u8] = b"\x7fELF";

/// A file of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum File {
    /// A copy of a file of this machine.
    Copy(PathBuf),
    /// A symbolic link.
    Link(PathBuf),
}

/// The files of every machine, by their paths there.
pub type Files = BTreeMap<PathBuf, File>;

/// The command of a test in a machine. Tests that are made for machines are ignored elsewhere.
pub fn command_line(test: &str, program: &str, filter: &str) -> String {
    let ignored = if test == KERNELS { " --ignored" } else { "" };
    format!("{program} --test-threads=1 --nocapture{ignored} {filter}")
}

/// Builds the programs for the inside, `tests` among them, and collects all files; built programs
/// are stripped into a directory of `cache`.
pub fn gather(cache: &Path, tests: &[String]) -> Result<Files> {
    let directory = cache.join("bin");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let mut files = Files::new();
    let mut programs = Vec::new();
    for (name, built) in build(tests)? {
        let stripped = directory.join(&name);
        strip(&built, &stripped)?;
        let place = if name == INIT {
            PathBuf::from(INIT_PATH)
        } else {
            Path::new(BIN).join(&name)
        };
        files.insert(place, File::Copy(stripped.clone()));
        programs.push(stripped);
    }
    let is_suite = tests.iter().any(|test| !TESTS.contains(&test.as_str()));
    let more = if is_suite { TOOLS_OF_SUITE } else { &[] };
    for tool in TOOLS.iter().chain(more) {
        let path = find(tool)?;
        files.insert(Path::new("/usr/sbin").join(tool), File::Copy(path.clone()));
        programs.push(path);
    }
    let busybox = find(BUSYBOX)?;
    let names = command::run(&busybox.display().to_string(), ["--list"])?;
    files.insert("/bin/busybox".into(), File::Copy(busybox));
    // A program that exists in full comes before busybox in the PATH of a machine.
    for name in names.lines().filter(|name| *name != BUSYBOX) {
        for directory in ["/bin", "/usr/bin"] {
            files.insert(
                Path::new(directory).join(name),
                File::Link("/bin/busybox".into()),
            );
        }
    }
    let shell = find(SHELL)?;
    for place in ["/bin/sh", "/usr/bin/sh"] {
        files.insert(place.into(), File::Copy(shell.clone()));
    }
    programs.push(shell);
    let mut trees = vec![PathBuf::from(XTABLES)];
    // Tests find these files at the path at which the tests were built.
    trees.push(workspace::root().join(RECORDINGS));
    if is_suite {
        trees.extend(TREES_OF_SUITE.iter().map(PathBuf::from));
        let sources = SOURCES_OF_SUITE.iter();
        trees.extend(sources.map(|source| workspace::root().join(source)));
    }
    for tree in trees {
        for (path, content) in contents(&tree)? {
            if is_program(&content)? {
                programs.push(content.clone());
            }
            files.insert(path, File::Copy(content));
        }
    }
    for library in shared_libraries(&programs)? {
        files.insert(library.clone(), File::Copy(library));
    }
    Ok(files)
}

/// A file, or every file below a directory, each with its target, because a target may have several
/// names. A link without a target is left out.
fn contents(tree: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let content = fs::canonicalize(tree).with_context(|| format!("find {}", tree.display()))?;
    if !content.is_dir() {
        return Ok(vec![(tree.to_owned(), content)]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(tree).with_context(|| format!("read {}", tree.display()))? {
        let path = entry
            .with_context(|| format!("read {}", tree.display()))?
            .path();
        if path.exists() {
            found.extend(contents(&path)?);
        }
    }
    Ok(found)
}

/// Whether a file may need shared libraries.
fn is_program(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let file = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.take(MAGIC.len() as u64)
        .read_to_end(&mut start)
        .with_context(|| format!("read {}", path.display()))?;
    Ok(start == MAGIC)
}

/// The files of a machine that runs `tests` only.
pub fn only(files: &Files, tests: &[String]) -> Files {
    let is_wanted = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_test = path.starts_with(BIN) && !BINARIES.contains(&name.as_ref());
        !is_test || tests.iter().any(|test| *test == name)
    };
    let wanted = files.iter().filter(|(path, _)| is_wanted(path));
    wanted
        .map(|(path, file)| (path.clone(), file.clone()))
        .collect()
}

/// The actual file of a program on this machine, because distributions put links to links in the
/// PATH.
fn find(program: &str) -> Result<PathBuf> {
    let path = shell::find(program)
        .with_context(|| format!("{program} is missing: run `cargo xtask setup`"))?;
    fs::canonicalize(&path).with_context(|| format!("find {}", path.display()))
}

/// Builds tests, first process and binaries; their paths by name.
fn build(tests: &[String]) -> Result<Vec<(String, PathBuf)>> {
    shell::progress("guest: tests and binaries");
    let names = tests.iter().map(String::as_str).chain([INIT]);
    let wanted: Vec<&str> = names.collect();
    let mut build = shell::cargo(&["test", "--no-run", "--package", "overlay-tests"]);
    for test in tests {
        build.args(["--test", test]);
    }
    // Cargo builds a package's binaries along with its integration tests.
    let mut built = executables(&mut build, &wanted)?;
    let mut binaries = shell::cargo(&["build", "--package", "overlay-user", "--bins"]);
    built.extend(executables(&mut binaries, BINARIES)?);
    Ok(built)
}

/// Runs a cargo build and returns the paths of the wanted executables.
fn executables(command: &mut Command, wanted: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    command
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped());
    let shown = command::show(command);
    let mut child = command
        .spawn()
        .with_context(|| format!("start `{shown}`"))?;
    let output = child.stdout.take().context("the output of cargo")?;
    let mut found = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("read the output of cargo")?;
        let Ok(message) = serde_json::from_str::<serde_json::Value>(&line) else {
            continue;
        };
        let name = message["target"]["name"].as_str().unwrap_or_default();
        if let Some(path) = message["executable"].as_str()
            && wanted.contains(&name)
        {
            found.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for `{shown}`"))?;
    interrupt::check()?;
    if !status.success() || found.len() != wanted.len() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(found)
}

/// Copies a program without debug information, which is most of a program, because emulated memory
/// is small.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("strip");
    shell::run(command.arg("--strip-debug").arg("-o").arg(to).arg(from))
}
