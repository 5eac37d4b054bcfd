#!/bin/sh
# Starts the agent with the variant of iptables that the host's own rules are in: rules in the other
# one would stand beside those of kube-proxy and of the firewall, in an order that nobody has
# chosen.
variant=nft
# The kubelet marks the variant that the host uses (KUBE-IPTABLES-HINT; KUBE-KUBELET-CANARY before
# 1.24). Without a mark, tables of the other variant tell: asking that variant itself would make
# them.
if ! /usr/lib/overlay/nft/iptables-save -t mangle 2> /dev/null | grep -q '^:KUBE-\(IPTABLES-HINT\|KUBELET-CANARY\) ' &&
    grep -q . /proc/net/ip_tables_names 2> /dev/null; then
    variant=legacy
fi
export PATH="/usr/lib/overlay/$variant:$PATH"
exec /opt/overlay/overlayd "$@"
