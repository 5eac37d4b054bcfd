//! Control groups of a node, below those of this process: one in each hierarchy for the processes
//! of a kubelet, or one of version 2 whose sockets belong to a node.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Prefix of the names of all groups.
const PREFIX: &str = "overlay-lab-";

/// A group that no other process removes as long as this value lives.
#[derive(Debug)]
pub(super) struct Group {
    pub path: PathBuf,
    #[expect(dead_code, reason = "held for its lock, which ends with the file")]
    lock: File,
}

/// Makes a group in every hierarchy, whose name ends in `name`, after removing the groups of
/// earlier labs whose process was killed. Control groups belong to the machine: labs in other
/// namespaces have theirs beside these.
///
/// # Errors
/// On a machine without the hierarchies of version 1, or a kernel without version 2.
pub(super) fn create(name: &str) -> Result<Vec<Group>> {
    let mut own = own()?;
    let _lock = lock_version_2()?;
    own.push(own_of_version_2()?);
    create_below(&own, name)
}

/// Makes a group of version 2 that can contain single threads, because a test's threads are on
/// several nodes. Removes old groups as [`create`] does.
///
/// # Errors
/// On a kernel without such groups, or where this process may not make any.
pub(super) fn create_for_threads(name: &str) -> Result<Group> {
    let _lock = lock_version_2()?;
    let group = create_below(&[own_of_version_2()?], name)?.pop();
    let group = group.context("a group")?;
    let kind = group.path.join("cgroup.type");
    fs::write(&kind, "threaded").with_context(|| format!("write {}", kind.display()))?;
    Ok(group)
}

fn create_below(own: &[PathBuf], name: &str) -> Result<Vec<Group>> {
    own.iter().for_each(|own| sweep(own));
    let free = |number: &u32| {
        let name = format!("{PREFIX}{name}.{number}");
        own.iter().all(|own| !own.join(&name).exists())
    };
    let number = (0..).find(free).context("a free name")?;
    let name = format!("{PREFIX}{name}.{number}");
    own.iter().map(|own| create_in(own, &name)).collect()
}

fn create_in(parent: &Path, name: &str) -> Result<Group> {
    let path = parent.join(name);
    fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
    let lock = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    lock.lock_shared()
        .with_context(|| format!("lock {}", path.display()))?;
    // A group of `cpuset` accepts no process before its CPUs and memory nodes are set.
    for setting in ["cpuset.cpus", "cpuset.mems"] {
        let from = parent.join(setting);
        if from.exists() {
            fs::copy(&from, path.join(setting))
                .with_context(|| format!("copy {}", from.display()))?;
        }
    }
    Ok(Group { path, lock })
}

/// Removes groups of labs that no process holds or is in.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && File::open(entry.path()).is_ok_and(|group| group.try_lock().is_ok())
        {
            // A group with processes belongs to a running lab.
            let _ = remove(&entry.path());
        }
    }
}

/// Removes a group and its child groups. No process may be left inside.
pub(super) fn remove(group: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(group) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("remove control group {}", group.display()))
}

/// The directories of this process's own groups of version 1.
fn own() -> Result<Vec<PathBuf>> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let (mounts, groups) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
    let own: Vec<PathBuf> = groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            Some(mount_of(&mounts, controllers)?.join(path.trim_start_matches('/')))
        })
        .collect();
    ensure!(
        !own.is_empty(),
        "this machine has no control groups of version 1, which kubelet 1.20 and a cluster \
        here need"
    );
    Ok(own)
}

/// The directory in which systemd mounts the hierarchy of version 2 beside those of version 1, and
/// in which labs mount it where there is no mount, because nodes see the directories below.
const BESIDE: &str = "/sys/fs/cgroup/unified";
/// The name by which a lab's mount of the hierarchy is recognised.
const SOURCE: &str = "overlay-lab";

/// Undoes a lab's mount of the hierarchy of version 2, unless another lab needs the mount and has
/// files open there.
pub(super) fn unmount_version_2() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let is_ours = mounts.lines().any(|line| {
        line.contains(&format!(" {BESIDE} ")) && line.contains(&format!(" - cgroup2 {SOURCE} "))
    });
    if !is_ours {
        return Ok(());
    }
    let _lock = lock_version_2()?;
    match umount2(BESIDE, MntFlags::empty()) {
        // The next lab mounts the hierarchy again.
        Ok(()) => fs::remove_dir(BESIDE).or(Ok(())),
        Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmount {BESIDE}")),
    }
}

/// The directory in which hierarchies are mounted.
const HIERARCHIES: &str = "/sys/fs/cgroup";

/// Prevents other labs from mounting or unmounting the hierarchy of version 2, as long as the file
/// is open, because a lab that has found the mount needs it until the lab's group is open there.
fn lock_version_2() -> Result<File> {
    let lock = File::open(HIERARCHIES).with_context(|| format!("open {HIERARCHIES}"))?;
    lock.lock().with_context(|| format!("lock {HIERARCHIES}"))?;
    Ok(lock)
}

/// The directory of this process's own group of version 2.
fn own_of_version_2() -> Result<PathBuf> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let groups = read("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.context("this kernel has no control groups of version 2")?;
    let mounted = match mount_of_version_2(&read("/proc/self/mountinfo")?) {
        Some(mounted) => mounted,
        None => {
            fs::create_dir_all(BESIDE).with_context(|| format!("create {BESIDE}"))?;
            let (source, kind) = (Some(SOURCE), Some("cgroup2"));
            mount(source, BESIDE, kind, MsFlags::empty(), None::<&str>)
                .with_context(|| format!("mount cgroup2 at {BESIDE}"))?;
            BESIDE.into()
        }
    };
    Ok(mounted.join(own))
}

fn mount_of_version_2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, target) = (before.next()?, before.next()?);
        (root == "/" && after.starts_with("cgroup2 ")).then(|| PathBuf::from(target))
    })
}

/// The directory in which a hierarchy of version 1 is mounted whole.
fn mount_of(mounts: &str, controllers: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' ').skip(3), after.split(' '));
        let (root, target) = (before.next()?, before.next()?);
        let (kind, options) = (after.next()?, after.nth(1)?);
        let here = kind == "cgroup"
            && root == "/"
            && controllers
                .split(',')
                .all(|one| options.split(',').any(|option| option == one));
        (here && !controllers.is_empty()).then(|| PathBuf::from(target))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_found_by_all_of_its_controllers() {
        let mounts = "36 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup \
            rw,cpu,cpuacct\n\
                      37 30 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup \
                      rw,xattr,name=systemd\n\
                      38 30 0:33 /user /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      39 30 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = |controllers| mount_of(mounts, controllers);
        assert_eq!(
            found("cpu,cpuacct"),
            Some("/sys/fs/cgroup/cpu,cpuacct".into())
        );
        assert_eq!(found("name=systemd"), Some("/sys/fs/cgroup/systemd".into()));
        assert_eq!(found("memory"), None);
        assert_eq!(found("pids"), None);
        let version_2 = mount_of_version_2(mounts);
        assert_eq!(version_2, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found(""), None);
    }
}
