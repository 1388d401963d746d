#!/usr/bin/env bash
# Boots a Debian whose init is systemd in QEMU, and prints its console: machine.sh BASE OVERLAY SECONDS
#
# BASE keeps the plain system and its kernel; they are made there the first time (debootstrap, which takes root and the machine's own
# package source). OVERLAY is laid over the root; a unit in it runs what is to run and powers the machine off. All is in memory, so
# nothing is left behind. Ends with 124 where that takes longer than SECONDS.
set -euo pipefail

base=$1 overlay=$2 limit=$3

# TARGET FOLDER: the folder as an archive that the kernel unpacks. Uncompressed, it boots faster.
archive() {
    (cd -- "$2" && find . -print0 | cpio --quiet --null --create --format=newc --owner=0:0) >"$1.new"
    mv -- "$1.new" "$1"
}

mkdir -p -- "$base"
if [[ ! -e $base/root.cpio || ! -e $base/vmlinuz ]]; then
    work=$(mktemp -d)
    trap 'rm -rf -- "$work"' EXIT
    read -r source suite < <(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Identifier: Packages' | head -n 1)
    debootstrap --variant=minbase --include=systemd-sysv "$suite" "$work/root" "$source" >"$base/debootstrap.log" 2>&1 </dev/null ||
        { tail -n 5 "$base/debootstrap.log"; exit 1; }
    rm -rf -- "$work"/root/{var/cache/apt,var/lib/apt/lists,usr/share/doc,usr/share/man,usr/share/locale,usr/share/zoneinfo}
    ln -s lib/systemd/systemd "$work/root/init"
    echo 0123456789abcdef0123456789abcdef >"$work/root/etc/machine-id"
    archive "$base/root.cpio" "$work/root"

    # The package of that name depends on the newest kernel.
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    (cd -- "$work" && apt-get download "$kernel" >/dev/null 2>&1 && dpkg --extract ./*.deb kernel)
    cp -- "$work"/kernel/boot/vmlinuz-* "$base/vmlinuz"
    rm -rf -- "$work"
    trap - EXIT
fi

initrd=$(mktemp)
trap 'rm -f -- "$initrd" "$initrd.over"' EXIT
archive "$initrd.over" "$overlay"
# The kernel unpacks one archive after the other.
cat -- "$base/root.cpio" "$initrd.over" >"$initrd"
timeout --kill-after=5 "$limit" qemu-system-x86_64 -accel tcg,thread=multi -smp 2 -M q35 -cpu max -m 2G -nographic -no-reboot -nic none \
    -kernel "$base/vmlinuz" -initrd "$initrd" -append 'console=ttyS0 panic=-1 quiet systemd.getty_auto=no systemd.show_status=no' </dev/null
