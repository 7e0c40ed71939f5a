# shellcheck shell=bash
# Boots a Debian's own systemd in namespaces, as a machine of its own on this kernel: sourced by hack/fresh-deb after
# hack/lib.sh. `ROOT` is the system's root folder, `NAME` a name that nothing else has.
# It has its own processes, mounts, network (one interface, 192.0.2.10, that leads nowhere) and control groups, and not
# the right to set the clock or load modules.
# shellcheck disable=SC2153,SC2154 # ROOT, NAME and scratch are the script's.

BOOT_ADDRESS=192.0.2.10

# The control groups that this machine has mounted: folder, kind, options.
cgroup_mounts() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2, $3, $4 }' /proc/self/mounts; }

# Moves this very process into a group of its own everywhere; what it starts from then on is in there.
enter_cgroups() {
  local folder name
  while read -r folder _; do
    mkdir -p "$folder/$NAME"
    for name in cpuset.cpus cpuset.mems; do
      if [ -e "$folder/$name" ] && [ -z "$(cat "$folder/$NAME/$name")" ]; then
        cat "$folder/$name" >"$folder/$NAME/$name"
      fi
    done
    echo 0 >"$folder/$NAME/cgroup.procs"
  done < <(cgroup_mounts)
}

# Fails while a process in them has not ended yet.
remove_cgroups() {
  local folder left=0
  while read -r folder _; do
    [ ! -d "$folder/$NAME" ] || find "$folder/$NAME" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
  done < <(cgroup_mounts)
  return "$left"
}

# shellcheck disable=SC2016 # Expanded there.
BOOT='set -e
cd "$1"
mount --bind . .
cd "$1"
mount -t proc -o nosuid,nodev,noexec proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
while read -r folder kind options; do
  if ! mountpoint -q sys/fs/cgroup && [ "$folder" != /sys/fs/cgroup ]; then mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup; fi
  mkdir -p ".$folder"
  if [ "$kind" = cgroup ]; then mount -t cgroup -o "${options#*relatime,}" cgroup ".$folder"; else mount -t cgroup2 cgroup2 ".$folder"; fi
done <<<"$3"
mount -t tmpfs -o mode=755,nosuid dev dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
while read -r name major minor; do mknod -m 666 "dev/$name" c "$major" "$minor"; done <<NODES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
NODES
# Of its own, as the others are: systemd takes what is the console from everybody else.
mknod -m 600 dev/console c 1 3
mount -t tmpfs -o mode=1777 tmp dev/shm
mount -t tmpfs -o mode=755 run run
hostname "$4"
ip link set lo up
ip link add eth0 type veth peer name wire
ip link set wire up
ip address add "$2/24" dev eth0
ip link set eth0 up
ip route add default via "${2%.*}.1"
mkdir -p run/old
pivot_root . run/old
umount -l /run/old
rmdir /run/old
exec /usr/bin/env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio,-sys_boot,-mac_admin \
  /sbin/init SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1'

# Starts it and waits until it is up: BOOTED is its first process, as this machine counts.
boot() {
  (
    enter_cgroups
    exec unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --net --cgroup \
      bash -c "$BOOT" boot "$ROOT" "$BOOT_ADDRESS" "$(cgroup_mounts)" node1
  ) </dev/null >"$scratch/boot.log" 2>&1 &
  UNSHARE=$!
  until_true 20 booted_child || die "no system was booted" "$(cat "$scratch/boot.log")"
  BOOTED=$(booted_child)
  until_true 60 is_running || {
    inside systemctl --failed --no-legend || true
    die "systemd does not come up" "$(cat "$scratch/boot.log")"
  }
}

# The child of unshare that has become systemd.
booted_child() {
  local child
  child=$(cat "/proc/$UNSHARE/task/$UNSHARE/children" 2>/dev/null)
  child=${child%% *}
  [ -n "$child" ] || return 1
  case $(cat "/proc/$child/comm" 2>/dev/null) in systemd | init) echo "$child" ;; *) return 1 ;; esac
}

is_running() { [ "$(inside systemctl is-system-running 2>/dev/null)" = running ]; }

# until_true SECONDS COMMAND...
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}

# inside COMMAND...: in the booted system.
inside() {
  nsenter --target "$BOOTED" --mount --uts --ipc --net --pid --cgroup -- \
    /usr/bin/env -i --chdir=/ HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

power_off() {
  # All that runs in there goes with its first process.
  if [ -n "${UNSHARE-}" ]; then kill -KILL "$UNSHARE" 2>/dev/null || true; fi
  wait 2>/dev/null || true
  until_true 10 remove_cgroups || note "control groups called $NAME are left"
}
