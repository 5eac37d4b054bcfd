#!/bin/sh
# Turns the agent's subnet.env into options for Docker's daemon, with the flags and the output of
# flannel's script of this name.
usage() {
    cat << 'END'
usage: mk-docker-opts.sh [-f FILE] [-d FILE] [-i] [-c] [-m] [-k KEY]
  -f  what the agent has written (/run/flannel/subnet.env)
  -d  where to write the options (/run/docker_opts.env)
  -i  only a variable for each option
  -c  only one variable with all options
  -m  say nothing of masquerading
  -k  name of the variable with all options (DOCKER_OPTS)
END
}

from=/run/flannel/subnet.env to=/run/docker_opts.env
each=yes together=yes masquerade=yes key=DOCKER_OPTS
while getopts f:d:icmk:h option; do
    case $option in
        f) from=$OPTARG ;;
        d) to=$OPTARG ;;
        i) together= ;;
        c) each= ;;
        m) masquerade= ;;
        k) key=$OPTARG ;;
        h) usage && exit ;;
        *) usage >&2 && exit 1 ;;
    esac
done
# Both together ask for both.
[ -n "$each$together" ] || each=yes together=yes

[ -f "$from" ] || { echo "$from is missing: has the agent a lease?" >&2; exit 1; }
. "$from" || exit 1

all=
option() { # name of the variable, option
    [ -z "$each" ] || printf 'DOCKER_OPT_%s="%s"\n' "$1" "$2"
    all="$all $2"
}
{
    [ -z "${FLANNEL_SUBNET-}" ] || option BIP "--bip=$FLANNEL_SUBNET"
    case ${FLANNEL_IPMASQ-} in
        true) docker_masquerades=false ;;
        *) docker_masquerades=true ;;
    esac
    [ -z "$masquerade" ] || option IPMASQ "--ip-masq=$docker_masquerades"
    [ -z "${FLANNEL_MTU-}" ] || option MTU "--mtu=$FLANNEL_MTU"
    [ -z "$together" ] || printf '%s="%s"\n' "$key" "$all"
} > "$to"
