# shellcheck shell=bash
# A Debian that has just been installed, thrown away afterwards: sourced by hack/fresh-debian and hack/fresh-deb after
# hack/lib.sh. `scratch` and `ROOT` are folders of the script's.
# shellcheck disable=SC2154

# Debian's mirror as this machine has it.
mirror() {
  local found
  # shellcheck disable=SC2016 # Apt's own fields.
  found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
  echo "${found:-http://deb.debian.org/debian}"
}

# Unpacked, not installed.
fetch_mmdebstrap() {
  (cd "$scratch" && apt-get -qq -o APT::Sandbox::User=root download mmdebstrap) ||
    die "apt cannot fetch mmdebstrap" "apt-get update; check the network"
  dpkg-deb -x "$scratch"/mmdebstrap*.deb "$scratch/mmdebstrap"
}

# install_debian SUITE [PACKAGE,PACKAGE]: what is essential, apt and the packages, into ROOT.
install_debian() {
  step "installing $1 from $(mirror)"
  unshare --mount --propagation private \
    perl "$scratch/mmdebstrap/usr/bin/mmdebstrap" --quiet --mode=root --variant=apt --include="ca-certificates${2:+,$2}" \
    "$1" "$ROOT" "$(mirror)" || die "$1 could not be installed"
  cp /etc/resolv.conf /etc/hosts "$ROOT/etc"
  cp /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs/ca-certificates.crt"
}
