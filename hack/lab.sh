# shellcheck shell=bash
# The lab: a cluster on one machine. Each node is a network, mount, PID, UTS and IPC namespace with its own disk folder
# and cgroup subtree; a bridge in a network namespace of its own joins them. The machine's own network gets nothing.
#
# All of a cluster is in $LAB (folder), namespaces $NAME-*, cgroups /bramble-lab/$NAME:
#   cluster.env      what the cluster is (subnet, nodes, ports)
#   bin/             bramble and kubectl, as the nodes see them in /usr/lib/bramble
#   nI/disk/         the node's disk: etc, var, root
#   nI/pid           the node's init, as the machine counts
#   nI.log           what its agent says
#   config.extra.toml  if a person puts it there: more settings for every node, read when a node starts
#   registry/        the registry's configuration and blobs
#   kubeconfig       for the machine

LAB_ROOT=${BRAMBLE_LAB:-/var/lib/bramble-lab}
LAN_HOST=1
REGISTRY_PORT=5000
export MAX_NODES=90

# use_cluster NAME: the variables of a cluster that exists or is about to.
use_cluster() {
  NAME=$1
  [[ $NAME =~ ^[a-z][a-z0-9-]{0,30}$ ]] || die "\"$NAME\" is no name for a cluster" "use a-z, 0-9 and -, at most 31"
  LAB="$LAB_ROOT/$NAME"
  CGROUP="bramble-lab/$NAME"
  NODES=0 SUBNET="" API_PORT=0 PAGE_PORT=0
  # shellcheck disable=SC1091 # Written by save_cluster.
  if [ -e "$LAB/cluster.env" ]; then source "$LAB/cluster.env"; fi
}

save_cluster() {
  printf 'NODES=%q SUBNET=%q API_PORT=%q PAGE_PORT=%q\n' "$NODES" "$SUBNET" "$API_PORT" "$PAGE_PORT" >"$LAB/cluster.env.new"
  mv "$LAB/cluster.env.new" "$LAB/cluster.env"
}

# One command at a time changes a cluster.
lock_cluster() {
  mkdir -p "$LAB_ROOT"
  exec {LOCK_FD}>"$LAB_ROOT/.$NAME.lock"
  flock -w 600 "$LOCK_FD" || die "another command is busy with cluster $NAME since 10 minutes"
}

node_ns() { echo "$NAME-n$1"; }
lan_ns() { echo "$NAME-lan"; }

# The last octets of the 2016 talk, then upwards.
node_ip() {
  local octet
  case $1 in 1) octet=102 ;; 2) octet=101 ;; 3) octet=100 ;; *) octet=$((99 + $1)) ;; esac
  host_ip "$octet"
}

host_ip() { echo "${SUBNET%.*}.$1"; }
registry_address() { echo "$(host_ip $LAN_HOST):$REGISTRY_PORT"; }

# The same address every time a node starts: its neighbours remember.
node_mac() {
  local hash
  hash=$(printf '%s' "$NAME" | sha256sum)
  printf '02:62:%s:%s:%s:%02x' "${hash:0:2}" "${hash:2:2}" "${hash:4:2}" "$1"
}

netns_exists() { [ -e "/run/netns/$1" ]; }

in_lan() { nsenter --net="/run/netns/$(lan_ns)" -- "$@"; }

# --- subnets -------------------------------------------------------------------------------------------------------

# networks_overlap CIDR CIDR... : is the first one in touch with any of the others?
networks_overlap() {
  python3 -c 'import ipaddress, sys
nets = [ipaddress.ip_network(a, strict=False) for a in sys.argv[1:]]
sys.exit(not any(nets[0].overlaps(n) for n in nets[1:]))' "$@"
}

machine_networks() {
  ip -4 -o addr show | awk '{print $4}'
  ip -4 route show | awk '$1 ~ /^[0-9]/ {print $1}'
}

check_subnet() {
  [[ $1 =~ ^([0-9]{1,3}\.){3}0/24$ ]] || die "$1 is no subnet for the lab" "a /24 such as 192.168.1.0/24"
  python3 -c 'import ipaddress, sys; ipaddress.ip_network(sys.argv[1])' "$1" 2>/dev/null || die "$1 is no network"
  if networks_overlap "$1" 10.0.0.0/24 10.1.0.0/16; then
    die "$1 overlaps the cluster's own networks (services 10.0.0.0/24, pods 10.1.0.0/16)" "choose another --subnet"
  fi
}

free_subnet() {
  local third networks
  mapfile -t networks < <(machine_networks)
  for third in {77..99} {150..199}; do
    if ! networks_overlap "192.168.$third.0/24" "${networks[@]}"; then
      echo "192.168.$third.0/24"
      return
    fi
  done
  die "no free subnet among 192.168.77.0/24 and its neighbours" "choose one with --subnet"
}

# --- cgroups -------------------------------------------------------------------------------------------------------

# Where cgroup hierarchies are mounted: one for v2, one for each v1 controller.
cgroup_mounts() { awk '$3 == "cgroup" || $3 == "cgroup2" {print $2}' /proc/self/mounts | sort -u; }

# make_cgroup PATH: in every hierarchy, ready to hold limits and further groups.
make_cgroup() {
  local mount part path
  while read -r mount; do
    path=$mount
    for part in ${1//\// }; do
      delegate_controllers "$path"
      path="$path/$part"
      mkdir -p "$path"
      # A v1 cpuset is born empty and takes no process until told its processors.
      if [ -e "$path/cgroup.clone_children" ] && [ -e "$path/cpuset.cpus" ]; then copy_cpuset "$path"; fi
    done
  done < <(cgroup_mounts)
}

copy_cpuset() {
  local file
  echo 1 >"$1/cgroup.clone_children"
  for file in cpuset.cpus cpuset.mems; do
    [ -n "$(cat "$1/$file")" ] || cat "$(dirname "$1")/$file" >"$1/$file"
  done
}

# v2: what a group's children may be limited in. The machine's root group and groups without processes allow it.
delegate_controllers() {
  local controller
  [ -e "$1/cgroup.subtree_control" ] || return 0
  while read -r controller; do
    echo "+$controller" >"$1/cgroup.subtree_control" 2>/dev/null || true
  done < <(tr ' ' '\n' <"$1/cgroup.controllers" | grep .)
}

# enter_cgroup PATH: moves the calling (sub)shell.
enter_cgroup() {
  local mount
  while read -r mount; do
    echo "$BASHPID" >"$mount/$1/cgroup.procs" || die "cgroup $mount/$1 takes no process"
  done < <(cgroup_mounts)
}

cgroup_pids() {
  local mount
  while read -r mount; do
    if [ -d "$mount/$1" ]; then find "$mount/$1" -name cgroup.procs -exec cat {} + 2>/dev/null || true; fi
  done < <(cgroup_mounts) | sort -un
}

# kill_cgroup PATH: kill -9 of everything in it, until nothing is left.
kill_cgroup() {
  local pids mount deadline=$((SECONDS + 30))
  while read -r mount; do
    # A frozen process does not even die.
    if [ -d "$mount/$1" ]; then
      find "$mount/$1" -name freezer.state -exec sh -c 'echo THAWED >"$1"' _ {} \; 2>/dev/null || true
    fi
  done < <(cgroup_mounts)
  while pids=$(cgroup_pids "$1") && [ -n "$pids" ]; do
    # shellcheck disable=SC2086 # A list of numbers.
    kill -KILL $pids 2>/dev/null || true
    [ $SECONDS -lt $deadline ] || die "processes do not die: $(echo "$pids" | tr '\n' ' ')" "look at them with ps"
    sleep 0.02
  done
}

remove_cgroup() {
  local mount deadline=$((SECONDS + 10))
  while read -r mount; do
    while [ -d "$mount/$1" ]; do
      find "$mount/$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [ -d "$mount/$1" ] || break
      [ $SECONDS -lt $deadline ] || die "cgroup $mount/$1 cannot be removed" "look at the processes in it"
      sleep 0.05
    done
  done < <(cgroup_mounts)
}

# --- the bridge and its machine ------------------------------------------------------------------------------------

add_netns() {
  netns_exists "$1" && return
  # `ip netns` makes its folder a mount of its own the first time; hack/down takes that back if it was us.
  if ! mountpoint -q /run/netns && [ ! -d /run/netns ]; then touch "$LAB_ROOT/.run-netns-is-ours"; fi
  ip netns add "$1"
  ip -n "$1" link set lo up
}

make_lan() {
  local ns
  ns=$(lan_ns)
  add_netns "$ns"
  if ! ip -n "$ns" link show br0 >/dev/null 2>&1; then
    ip -n "$ns" link add br0 type bridge stp_state 0 forward_delay 0
    ip -n "$ns" addr add "$(host_ip $LAN_HOST)/24" dev br0
    ip -n "$ns" link set br0 up
  fi
  make_cgroup "$CGROUP/lan"
}

# start_in_lan NAME COMMAND...: a service of the bridge machine, known by its pid file.
start_in_lan() {
  local service=$1
  shift
  if service_runs "$service"; then return; fi
  (
    enter_cgroup "$CGROUP/lan"
    exec {LOCK_FD}>&-
    cd /
    exec setsid "$@" </dev/null >>"$LAB/$service.log" 2>&1
  ) &
  echo $! >"$LAB/$service.pid"
}

service_runs() {
  local pid
  pid=$(cat "$LAB/$1.pid" 2>/dev/null) || return 1
  cgroup_pids "$CGROUP/lan" | grep -qx "$pid"
}

start_registry() {
  local address
  address=$(registry_address)
  mkdir -p "$LAB/registry"
  cat >"$LAB/registry/config.yml" <<EOF
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: $LAB/registry/data}
  delete: {enabled: true}
http: {addr: "$address"}
EOF
  start_in_lan registry nsenter --net="/run/netns/$(lan_ns)" -- "$OUT/tools/docker-registry" serve "$LAB/registry/config.yml"
  wait_for 15 "the registry" in_lan curl -sf -o /dev/null "http://$address/v2/" ||
    die "the registry does not answer on $address: $(tail -n 3 "$LAB/registry.log")" "see $LAB/registry.log"
}

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local deadline=$((SECONDS + $1))
  shift 2
  until "$@" 2>/dev/null; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.1
  done
}

# --- nodes ---------------------------------------------------------------------------------------------------------

node_exists() { [[ $1 =~ ^[1-9][0-9]?$ ]] && [ "$1" -le "$NODES" ]; }

# The init process of a node, if it runs. A stale pid file is found out by the cgroup.
node_pid() {
  local pid
  pid=$(cat "$LAB/n$1/pid" 2>/dev/null) || return 1
  grep -q "/$CGROUP/n$1/" "/proc/$pid/cgroup" 2>/dev/null || return 1
  echo "$pid"
}

# write_disk I: what the card's image would bring. State of the node is not touched.
write_disk() {
  local etc="$LAB/n$1/disk/etc" ip
  ip=$(node_ip "$1")
  mkdir -p "$etc/bramble" "$LAB/n$1/disk/"{var/lib/bramble,var/log,var/tmp,root,etc.work}
  ln -sfn /run "$LAB/n$1/disk/var/run"
  echo "node$1" >"$etc/hostname"
  printf '127.0.0.1 localhost\n%s node%s\n' "$ip" "$1" >"$etc/hosts"
  rm -f "$etc/resolv.conf"
  printf 'nameserver 10.0.0.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n' >"$etc/resolv.conf"
  printf '%s' "$NAME $1 $(cat "$LAB/secret")" | sha256sum | cut -c1-32 >"$etc/machine-id"
  (
    umask 077
    cat >"$etc/bramble/config.toml" <<EOF
cluster_secret = "$(cat "$LAB/secret")"
cgroup_root = "/$CGROUP/n$1"
# Nobody answers there: names outside the cluster fail at once.
upstream_dns = ["$(host_ip $LAN_HOST):53"]
$(cat "$LAB/config.extra.toml" 2>/dev/null || true)

[registries."docker.io"]
mirrors = ["http://$(registry_address)"]

[registries."$(registry_address)"]
insecure = true
EOF
  )
}

plug_node() {
  local ns
  ns=$(node_ns "$1")
  add_netns "$ns"
  if ip -n "$ns" link show eth0 >/dev/null 2>&1; then return; fi
  ip -n "$(lan_ns)" link add "n$1" type veth peer name eth0 address "$(node_mac "$1")" netns "$ns"
  ip -n "$(lan_ns)" link set "n$1" master br0 up
  ip -n "$ns" addr add "$(node_ip "$1")/24" dev eth0
  ip -n "$ns" link set eth0 up
  ip -n "$ns" route add default via "$(host_ip $LAN_HOST)"
}

start_node() {
  if node_pid "$1" >/dev/null; then return; fi
  write_disk "$1"
  plug_node "$1"
  make_cgroup "$CGROUP/n$1/system"
  mkdir -p "$LAB/n$1/root"
  rm -f "$LAB/n$1/pid"
  (
    enter_cgroup "$CGROUP/n$1/system"
    exec {LOCK_FD}>&-
    cd /
    exec setsid nsenter --net="/run/netns/$(node_ns "$1")" -- \
      unshare --mount --propagation private --uts --ipc --pid --fork \
      "$REPO/hack/node-init" "$LAB" "$1" "$REPO" </dev/null >>"$LAB/n$1.log" 2>&1
  ) &
  wait_for 15 "node $1" test -s "$LAB/n$1/pid" ||
    die "node $1 does not start: $(tail -n 3 "$LAB/n$1.log")" "see $LAB/n$1.log"
}

# A power cut: nothing is asked, nothing can answer. The disk stays.
kill_node() {
  # The plug comes first: a kernel that outlives its processes would say goodbye for them.
  ip -n "$(lan_ns)" link del "n$1" 2>/dev/null || true
  kill_cgroup "$CGROUP/n$1"
  if netns_exists "$(node_ns "$1")"; then ip netns del "$(node_ns "$1")"; fi
  remove_cgroup "$CGROUP/n$1"
  rm -f "$LAB/n$1/pid"
}

# on_node I COMMAND...: as root on the node, in its cgroup, with the terminal if there is one.
on_node() {
  local node=$1 pid
  shift
  pid=$(node_pid "$node") || die "node $node of cluster $NAME does not run" "hack/node --name $NAME $node --start"
  (
    enter_cgroup "$CGROUP/n$node/system"
    if [ -n "${LOCK_FD-}" ]; then exec {LOCK_FD}>&-; fi
    # shellcheck disable=SC2016 # Expanded on the node.
    exec nsenter -t "$pid" --mount --net --uts --ipc --pid -- \
      env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root \
      LANG=C.UTF-8 TERM="${TERM:-dumb}" BRAMBLE_KUBECTL=/usr/lib/bramble/kubectl \
      sh -c 'cd "$0" 2>/dev/null || cd /root; exec "$@"' "$PWD" "$@"
  )
}

# --- end -----------------------------------------------------------------------------------------------------------

# remove_cluster: whole or half-made.
remove_cluster() {
  local ns mount
  kill_cgroup "$CGROUP"
  for ns in /run/netns/"$NAME"-lan /run/netns/"$NAME"-n[0-9]*; do
    if [ -e "$ns" ]; then ip netns del "$(basename "$ns")" || rm -f "$ns"; fi
  done
  while read -r mount; do umount -l "$mount"; done < <(awk -v p="$LAB/" 'index($2, p) == 1 {print $2}' /proc/self/mounts | sort -r)
  remove_cgroup "$CGROUP"
  rm -rf --one-file-system -- "$LAB"
  rm -f "$LAB_ROOT/.$NAME.lock"
  remove_shared
}

# What clusters share goes with the last of them.
remove_shared() {
  local mount
  if compgen -G "$LAB_ROOT/*" >/dev/null; then return; fi
  while read -r mount; do
    if [ -d "$mount/bramble-lab" ]; then rmdir "$mount/bramble-lab" 2>/dev/null || true; fi
  done < <(cgroup_mounts)
  if [ -e "$LAB_ROOT/.run-netns-is-ours" ] && [ -z "$(ls -A /run/netns 2>/dev/null)" ]; then
    umount /run/netns 2>/dev/null || true
    rmdir /run/netns 2>/dev/null || true
    rm -f "$LAB_ROOT/.run-netns-is-ours"
  fi
  if ! compgen -G "$LAB_ROOT/.*.lock" >/dev/null; then rmdir "$LAB_ROOT" 2>/dev/null || true; fi
}
