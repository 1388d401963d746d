#!/usr/bin/env bash
# Boots a machine in QEMU and prints its console: machine.sh KIND BASE OVERLAY SECONDS
# Only makes what it consists of:                 machine.sh KIND BASE
# ... and what is to be unpacked, BASE/initrd:    machine.sh KIND BASE OVERLAY
#
# KIND systemd: a Debian whose init is systemd, for x86-64. Making it takes root (debootstrap).
# KIND arm64:   the kernel, Busybox and the libraries that .NET wants of a Debian for arm64; its init comes with OVERLAY.
# KIND xen:     Xen, and as domain 0 a kernel with Busybox, xenstored and libxenctrl; its init comes with OVERLAY.
# KIND linux:   a kernel with Busybox and the modules of a virtio disk, for x86-64; its init comes with OVERLAY. A test boots it.
#
# BASE keeps what the machine consists of; it is made there the first time, from the package source of this machine. OVERLAY is laid over
# its root; something in it runs what is to run and powers the machine off. All is in memory, so nothing is left behind. Ends with 124
# where that takes longer than SECONDS, and with 3 where the package source has no such machine.
set -euo pipefail

kind=$1 base=$2 overlay=${3:-} limit=${4:-}

# TARGET FOLDER: what is in the folder as an archive that the kernel unpacks. Uncompressed, it boots faster. The folder's own mode is not the
# machine's root's: that one others must be able to enter.
archive() {
    (cd -- "$2" && find . -mindepth 1 -print0 | cpio --quiet --null --create --format=newc --owner=0:0) >"$1.new"
    mv -- "$1.new" "$1"
}

# PACKAGE [OPTIONS OF APT]: the newest kernel, which the package of that name depends on.
newest_kernel() {
    apt-cache "${@:2}" depends "$1" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

make_systemd() {
    local source suite
    read -r source suite < <(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Identifier: Packages' | head -n 1)
    debootstrap --variant=minbase --include=systemd-sysv "$suite" "$scratch/tree" "$source" </dev/null
    rm -rf -- "$scratch"/tree/{var/cache/apt,var/lib/apt/lists,usr/share/doc,usr/share/man,usr/share/locale,usr/share/zoneinfo}
    ln -s lib/systemd/systemd "$scratch/tree/init"
    echo 0123456789abcdef0123456789abcdef >"$scratch/tree/etc/machine-id"
    (cd -- "$scratch" && apt-get download "$(newest_kernel linux-image-cloud-amd64)" && dpkg --extract linux-image-*.deb kernel)
}

# ARCHITECTURE: has $apt name the options of apt by which it knows the packages of that architecture, beside what this machine knows.
know_packages() {
    apt=(-o "APT::Architecture=$1" -o "APT::Architectures=$1" -o "Dir::State=$scratch/state" -o "Dir::State::status=$scratch/status"
        -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User=root)
    mkdir -p -- "$scratch"/state/lists/partial "$scratch"/cache/archives/partial "$scratch/tree"
    : >"$scratch/status"
    apt-get "${apt[@]}" update
}

make_arm64() {
    local apt source suite release=()
    know_packages arm64
    # The kernel of the backports, where there are any: 6.1, that of Debian 12, has no write protection by userfaultfd on arm64.
    read -r source suite < <(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Identifier: Packages' | head -n 1)
    mkdir -- "$scratch/sources"
    cp -r -- /etc/apt/sources.list.d/. "$scratch/sources"
    echo "deb $source $suite-backports main" >"$scratch/sources/backports.list"
    if apt-get "${apt[@]}" -o "Dir::Etc::sourceparts=$scratch/sources" update; then
        apt+=(-o "Dir::Etc::sourceparts=$scratch/sources")
        release=(--target-release "$suite-backports")
    fi
    (
        cd -- "$scratch"
        apt-get "${apt[@]}" download "$(newest_kernel linux-image-cloud-arm64 "${apt[@]}" "${release[@]}")" busybox-static libc6 libgcc-s1 libstdc++6 \
            libssl3 zlib1g
        dpkg --extract linux-image-*.deb kernel
        rm -- linux-image-*.deb
        for package in ./*.deb; do dpkg --extract "$package" tree; done
    )
    rm -rf -- "$scratch/tree/usr/share"
}

make_xen() {
    local apt
    know_packages amd64
    if ! apt-cache "${apt[@]}" show xen-hypervisor-4.17-amd64 >/dev/null; then
        echo 'The package source of this machine has no xen-hypervisor-4.17-amd64; that of Debian 12 has.'
        exit 3
    fi
    (
        cd -- "$scratch"
        apt-get "${apt[@]}" download "$(newest_kernel linux-image-amd64 "${apt[@]}")" xen-hypervisor-4.17-amd64 libxen-dev xen-utils-4.17 libxenmisc4.17 libxencall1 libxendevicemodel1 \
            libxenevtchn1 libxenforeignmemory1 libxengnttab1 libxenhypfs1 libxenstore4 libxentoolcore1 libxentoollog1 libyajl2 liblzma5 libuuid1 libzstd1 zlib1g \
            libext2fs2 libcom-err2 libbz2-1.0 busybox-static libc6 libgcc-s1 libstdc++6
        dpkg --extract linux-image-*.deb kernel
        dpkg --extract xen-hypervisor-*.deb xen
        dpkg --extract libxen-dev_*.deb dev
        rm -- linux-image-*.deb xen-hypervisor-*.deb libxen-dev_*.deb
        for package in ./*.deb; do dpkg --extract "$package" tree; done
        mkdir -p -- tree/lib/modules
        cp -- kernel/lib/modules/*/kernel/drivers/xen/xen-{evtchn,privcmd,gntdev,gntalloc}.ko kernel/lib/modules/*/kernel/drivers/xen/xenfs/xenfs.ko tree/lib/modules
        gunzip --stdout xen/boot/xen-*.gz >"$base/xen"
        rm -rf -- "$base/dev"
        mv -- dev/usr "$base/dev"
    )
    rm -rf -- "$scratch/tree/usr/share"
}

make_linux() {
    local apt kernel module
    # Without a network apt-get says so, and ends well.
    know_packages amd64 || true
    kernel=$(newest_kernel linux-image-cloud-amd64 "${apt[@]}" || true)
    if [[ ! $kernel ]]; then
        echo 'The package source of this machine has no linux-image-cloud-amd64, or cannot be reached; that of Debian has.'
        exit 3
    fi
    (
        cd -- "$scratch"
        apt-get "${apt[@]}" download "$kernel" busybox-static
        dpkg --extract linux-image-*.deb kernel
        dpkg --extract busybox-static_*.deb busybox
        mkdir -p -- tree/bin tree/lib/modules
        cp -- busybox/bin/busybox tree/bin
        for module in virtio/virtio{,_ring,_pci,_pci_modern_dev,_pci_legacy_dev} block/virtio_blk; do
            cp -- kernel/lib/modules/*/kernel/drivers/"$module".ko* tree/lib/modules
        done
        # Newer kernels have them compressed.
        find tree/lib/modules -name '*.xz' -exec unxz {} +
    )
}

mkdir -p -- "$base"
base=$(realpath -- "$base")
# Made anew where it is to consist of something else.
recipe=$(declare -f "make_$kind")
if [[ ! -e $base/root.cpio || ! -e $base/vmlinuz || $(cat -- "$base/recipe" 2>/dev/null) != "$recipe" ]]; then
    scratch=$(mktemp -d)
    trap 'rm -rf -- "$scratch"' EXIT
    # Behind "||" bash would go on after a command that failed.
    set +e
    (set -e && "make_$kind") >"$base/made.log" 2>&1
    status=$?
    set -e
    (( status == 0 )) || { tail -n 5 "$base/made.log"; exit $status; }
    archive "$base/root.cpio" "$scratch/tree"
    cp -- "$scratch"/kernel/boot/vmlinuz-* "$base/vmlinuz"
    echo "$recipe" >"$base/recipe"
    rm -rf -- "$scratch"
    trap - EXIT
fi

if [[ ! $overlay ]]; then exit 0; fi

if [[ $limit ]]; then initrd=$(mktemp); else initrd=$base/initrd; fi
trap 'rm -f -- ${limit:+"$initrd"} "$initrd.over"' EXIT
archive "$initrd.over" "$overlay"
# The kernel unpacks one archive after the other.
cat -- "$base/root.cpio" "$initrd.over" >"$initrd"
if [[ ! $limit ]]; then exit 0; fi

kernel=$base/vmlinuz modules=$initrd
case $kind in
    xen)
        # The hypervisor is the kernel, and takes the kernel of domain 0 and its archive as modules.
        qemu=(qemu-system-x86_64 -M q35 -cpu qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+svm,+npt -m 4G -append 'dom0_mem=2048M,max:2048M console=com1 loglvl=warning guest_loglvl=error noreboot=0')
        kernel=$base/xen modules="$base/vmlinuz console=hvc0 panic=-1 quiet,$initrd"
        ;;
    systemd) qemu=(qemu-system-x86_64 -M q35 -cpu max -m 2G -append 'console=ttyS0 panic=-1 quiet systemd.getty_auto=no systemd.show_status=no') ;;
    arm64) qemu=(qemu-system-aarch64 -M virt -cpu cortex-a72 -m 2G -append 'console=ttyAMA0 panic=-1 quiet') ;;
esac
timeout --kill-after=5 "$limit" "${qemu[@]}" -accel tcg,thread=multi -smp 2 -nographic -no-reboot -nic none \
    -kernel "$kernel" -initrd "$modules" </dev/null
