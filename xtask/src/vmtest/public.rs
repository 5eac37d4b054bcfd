//! The files that `vmtest.toml` names, with which the vmtest program can run the same tests. That
//! program boots a generic kernel on this machine's own file system, which needs an initramfs that
//! mounts it, and requires KVM wherever there is a `/dev/kvm`, which needs a wrapper around the
//! emulator.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use overlay_tests::machine::SLOWNESS;
use overlay_tests::wait::SLOWNESS_ENV;

use super::guest::{self, File, Files};
use super::kernel::{self, ALWAYS, Flavour};
use super::machine::{CARDS, IN_NAMESPACE, QEMU};
use super::{initramfs, modules};
use crate::shell;

/// The program that carries out vmtest's requests inside of a machine.
const AGENT: &str = "qemu-ga";

/// A wrapper that removes vmtest's options for KVM, and adds those of our own machines. The clock
/// is the host's, because vmtest gives up after 80 seconds, and writing to its console takes long
/// when instructions are counted.
fn emulator() -> String {
    let [in_namespace, cards] = [IN_NAMESPACE, CARDS].map(|words| words.join(" "));
    format!(
        r#"#!/bin/bash
# Written by `cargo xtask vmtest --prepare`: the emulator without what vmtest adds for /dev/kvm.
arguments=()
while (($#)); do
    case $1 in
        -enable-kvm) ;;
        -cpu) shift ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
exec {in_namespace} {QEMU} -accel tcg,thread=multi -cpu max {cards} "${{arguments[@]}}"
"#
    )
}

/// Writes all files that `vmtest.toml` names below `cache`.
pub fn prepare(cache: &Path, files: &Files) -> Result<()> {
    shell::find(AGENT).with_context(|| {
        format!("{AGENT} is missing, which vmtest talks to: `apt-get install qemu-guest-agent`")
    })?;
    let names: Vec<String> = ALWAYS.iter().map(|name| (*name).to_owned()).collect();
    let kernels = kernel::fetch(cache, &kernel::named(&names)?, Flavour::Generic)?;
    let first_process: Files = files
        .iter()
        .filter(|(path, _)| path.as_path() == Path::new(guest::INIT_PATH) || is_library(path))
        .map(|(path, file)| (path.clone(), file.clone()))
        .collect();
    for kernel in &kernels {
        let directory = cache.join(kernel.series.name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let image = directory.join("vmlinuz");
        fs::copy(&kernel.image, &image).with_context(|| format!("write {}", image.display()))?;
        let modules = modules::collect(&kernel.modules, modules::HOST_ROOT)?;
        initramfs::pack(&directory.join("initramfs"), &first_process, &modules, &[])?;
    }
    script(&cache.join("qemu"), &emulator())?;
    script(&cache.join("guest"), &guest_script(files)?)?;
    shell::progress("everything that vmtest.toml names is there: run `vmtest`");
    Ok(())
}

fn is_library(path: &Path) -> bool {
    let path = path.to_string_lossy();
    path.starts_with("/lib") || path.starts_with("/usr/lib")
}

/// Runs the tests as the first process of our own machines does.
fn guest_script(files: &Files) -> Result<String> {
    let built: BTreeMap<&Path, &Path> = files
        .iter()
        .filter_map(|(path, file)| match file {
            File::Copy(from) => Some((path.as_path(), from.as_path())),
            File::Link(_) => None,
        })
        .collect();
    let find = |name: &str| {
        let path = Path::new(guest::BIN).join(name);
        built
            .get(path.as_path())
            .copied()
            .with_context(|| format!("{name} was not built"))
    };
    let directory = find("overlayd")?
        .parent()
        .context("the directory of the binaries")?;
    let mut text = format!(
        "#!/bin/sh\n# Written by `cargo xtask vmtest --prepare`: the tests, in a machine of \
        vmtest's.\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         export OVERLAY_BIN_DIR={} {SLOWNESS_ENV}={SLOWNESS}\n\
         mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf\n\
         mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         mountpoint -q /run || mount -t tmpfs tmpfs /run\n\
         status=0\n",
        directory.display()
    );
    for test in guest::TESTS {
        let line = guest::command_line(test, &find(test)?.display().to_string(), "\"$@\"");
        writeln!(text, "{line} || status=$?").context("write to a string")?;
    }
    text += "exit $status\n";
    Ok(text)
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("write {}", path.display()))
}
