# Makes a directory the root of the calling mount namespace and runs a command line there, as root of a
# machine of its own would: enter.sh ROOT COMMAND…
#
# Runs in mount, pid, uts and ipc namespaces of its own, so that all mounts go with the last process.
set -eu
root=$1
shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mkdir -p "$root/run/lock" "$root/root/.rustup" "$root/old"
# The toolchain as rustup has installed it, which nothing in there needs to change.
mount --rbind "$RUSTUP" "$root/root/.rustup"
mount -o remount,bind,ro "$root/root/.rustup"
unset RUSTUP
hostname fresh
cd "$root"
# Not chroot: where the root is not that of the mount namespace, nobody may make a user namespace.
pivot_root . old
umount --lazy /old
rmdir /old
cd /root/overlay
exec "$@"
