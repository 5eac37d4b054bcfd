# The first process of a node of the cluster: makes the namespaces it was started in look like a
# machine of its own, starts containerd, the kubelet and kube-proxy, and ends when one of them does.
# The kernel ends everything else with it.
#
# Arguments: the node's directory, with its configuration and what it keeps over a reboot; its name.
set -eu
home=$1 name=$2
trap exit TERM

hostname "$name"
mount --make-rslave /
mount -t proc proc /proc
# The kernel refuses to mount the same devices over themselves.
umount --lazy /sys
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf

# The control groups of this node only, whose root the kernel shows to this cgroup namespace. The
# hierarchy of version 2 has no controllers here; programs for sockets are attached there.
mount -t tmpfs tmpfs /sys/fs/cgroup
while IFS=: read -r _ controllers path; do
    case $controllers in
        '')
            mkdir /sys/fs/cgroup/unified
            mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
            continue
            ;;
        name=*) directory=${controllers#name=} ;;
        *) directory=$controllers ;;
    esac
    mkdir "/sys/fs/cgroup/$directory"
    mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/$directory"
done < /proc/self/cgroup

# What a reboot takes away, and what it leaves.
run=$home/run
mkdir -p "$run"
mount -t tmpfs -o mode=0755 tmpfs "$run"
mkdir "$run/lock" "$run/netns" "$run/node" "$run/settings"
mount --bind "$home" "$run/node"
mount --no-mtab --move "$run" /run
for directory in /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log /etc/cni /opt/cni; do
    mkdir -p "/run/node/disk$directory" "$directory"
    mount --bind "/run/node/disk$directory" "$directory"
done
# The kubelet sets these of the whole machine, unless they are as it wants them.
setting() {
    echo "$2" > "/run/settings/$1"
    mount --bind "/run/settings/$1" "/proc/sys/$(echo "$1" | tr . /)"
}
setting vm.overcommit_memory 1
setting vm.panic_on_oom 0
setting kernel.panic 10
setting kernel.panic_on_oops 1
setting kernel.keys.root_maxkeys 1000000
setting kernel.keys.root_maxbytes 25000000
mount --make-rshared /

exec < /dev/null
cd /run/node
containerd --config containerd.toml >> containerd.log 2>&1 &
until [ -S /run/containerd/containerd.sock ]; do sleep 0.1; done
kubelet --config=kubelet.json --kubeconfig="$name.conf" --hostname-override="$name" \
    --node-ip="$(ip -4 -o address show eth0 | awk '{ sub("/.*", "", $4); print $4 }')" \
    --container-runtime=remote --container-runtime-endpoint=unix:///run/containerd/containerd.sock \
    --root-dir=/var/lib/kubelet --cert-dir=/var/lib/kubelet/pki >> kubelet.log 2>&1 &
kube-proxy --config=proxy.json >> proxy.log 2>&1 &
wait -n
