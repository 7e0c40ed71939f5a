# shellcheck shell=bash
# Building the agent and /init for a board. Sourced by hack/image after hack/lib.sh; uses its `builder`.
# All that is built is in out/cross, all that is fetched in the cache.

CROSS="$OUT/cross"
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/bramble"

# Where cargo puts what is built for this machine.
host_target_dir() { echo "${CARGO_TARGET_DIR:-$REPO/target}"; }

# cross_program TARGET NAME
cross_program() { echo "$CROSS/$1/image/$2"; }

# gnu_name TARGET: what gcc and Debian's folders call it.
gnu_name() {
  case "$1" in
    aarch64-unknown-linux-gnu) echo aarch64-linux-gnu ;;
    armv7-unknown-linux-gnueabihf) echo arm-linux-gnueabihf ;;
    *) die "$1: no cross compiler is known for it" "name it in hack/cross.sh" ;;
  esac
}

# code_flags TARGET: Thumb code is much smaller than ARM code, and every armv7 runs it.
code_flags() {
  case "$1" in armv7-*) echo "-C target-feature=+thumb-mode" ;; esac
}

# Sets cross_rustc to a compiler that has the target's standard library.
choose_rustc() {
  local target=$1 libdir root="$CACHE/rust"
  libdir=$(rustc --print target-libdir --target "$target" 2>/dev/null || true)
  if [ -n "$libdir" ] && compgen -G "$libdir/libstd-*.rlib" >/dev/null; then
    cross_rustc=rustc
    return
  fi
  if [ "$(uname -m)" = x86_64 ] && builder unpack image-builder/toolchain/rust.toml --into "$root"; then
    cross_rustc="$root/rustc"
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s/usr/lib/x86_64-linux-gnu exec %s/usr/bin/rustc "$@"\n' "$root" "$root" \
      >"$cross_rustc.new"
    chmod 755 "$cross_rustc.new"
    mv "$cross_rustc.new" "$cross_rustc"
    "$cross_rustc" --version >/dev/null || die "Debian's Rust compiler does not run here" "rustup target add $target"
    return
  fi
  die "no Rust standard library for $target" "either: rustup target add $target
  or, on x86_64: a network, for Debian's compiler (image-builder/toolchain/rust.toml), which is unpacked into $root"
}

# patch_crates BOARD [--layer FOLDER...]: sets patched to the crates that the recipes patch, as copies beside the build.
patch_crates() {
  local name version file copy source
  patched=()
  while read -r name version file; do
    copy="$CROSS/patched/$name-$version-$(sha256sum "$file" | cut -c1-12)"
    if [ ! -d "$copy" ]; then
      grep -A1 "^name = \"$name\"$" "$REPO/Cargo.lock" | grep -q "^version = \"$version\"$" ||
        die "the patch $file is for $name $version, Cargo.lock has another" "make a patch for that one"
      source=$(compgen -G "${CARGO_HOME:-$HOME/.cargo}/registry/src/*/$name-$version" | head -n 1)
      [ -n "$source" ] || die "the source of $name $version is not there" "cargo fetch"
      mkdir -p "$CROSS/patched"
      rm -rf "$copy.new"
      cp -r "$source" "$copy.new"
      patch -s -p1 -d "$copy.new" <"$file" || die "$file does not fit $name $version"
      mv "$copy.new" "$copy"
    fi
    patched+=("$copy")
  done < <(builder patches "$@")
}

# cross_build TARGET BOARD [--layer FOLDER...]
cross_build() {
  local target=$1 board=$2 gnu upper under paths flags
  gnu=$(gnu_name "$target")
  command -v "$gnu-gcc" >/dev/null || die "$gnu-gcc is missing" "sudo hack/setup --image (Debian's package gcc-$gnu)"
  choose_rustc "$target"
  builder unpack image-builder/toolchain/sysroot.toml --into "$CACHE/sysroot"
  run_cargo fetch -q --locked --target "$target" --target "$(rustc -vV | sed -n 's/^host: //p')"
  patch_crates "${@:2}"
  paths=$(printf '"%s",' "${patched[@]}")
  [ "${#patched[@]}" -gt 0 ] || paths=""
  # No path of this machine is in what is built.
  # A panic aborts, so nobody walks the tables that would unwind it, a sixth of the agent: none are made here, and those
  # that the standard library brings along the linker leaves out.
  flags="$(code_flags "$target") -C force-unwind-tables=no --remap-path-prefix=$REPO=/bramble --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
  under=${target//-/_}
  upper=$(echo "$under" | tr '[:lower:]' '[:upper:]')
  cross_cargo() {
    env RUSTC="$cross_rustc" CARGO_TARGET_DIR="$CROSS" RUSTFLAGS="$flags $1" \
      "CARGO_TARGET_${upper}_LINKER=$gnu-gcc" "CC_$under=$gnu-gcc" "AR_$under=$gnu-ar" \
      LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH="$CACHE/sysroot/usr/lib/$gnu" \
      cargo --config "paths=[${paths%,}]" rustc -q --locked --profile image --target "$target" "${@:2}"
  }
  # Both run in the workspace's folder. What differed by folder there would get into the bytes.
  step "$board: building the agent for $target (the first time: ten minutes and more)"
  (cd "$REPO" && cross_cargo "" -p bramble --bin bramble -- -C link-arg=-Wl,-T,hack/no-unwind.ld)
  (cd "$REPO" && cross_cargo "-C target-feature=+crt-static" -p bramble-init --bin bramble-init)
}
