#!/bin/sh
# The first process of a machine, in namespaces of its own: makes a root, then becomes systemd.
# $1: the base root, which stays as it is; $2: an empty directory; $3: the machine's name.
set -eu
base=$1 dir=$2 name=$3

mount --make-rprivate /
mount -t tmpfs -o mode=0755,size=4g none "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
mount -t overlay -o "lowerdir=$base,upperdir=$dir/upper,workdir=$dir/work" none "$dir/root"
cd "$dir/root"
mount -t proc -o nosuid,nodev,noexec proc proc
# Of the kernel's settings a machine may change those of its own network, and nothing of its host.
mount --bind proc/sys/net mnt
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --move mnt proc/sys/net
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755,nosuid,nodev none run
mount -t tmpfs -o mode=1777,nosuid,nodev none tmp
mount -t tmpfs -o mode=0755,nosuid none dev
mkdir dev/pts dev/shm
mount -t devpts -o mode=0620,ptmxmode=0666,newinstance none dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev none dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for node in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 0666 "dev/${node%:*}" c 1 "${node#*:}"
done
mknod -m 0666 dev/tty c 5 0
hostname "$name"
echo "$name" > etc/hostname
printf '127.0.0.1 localhost %s\n' "$name" > etc/hosts
: > etc/machine-id
rm -f var/lib/dbus/machine-id
mkdir .old
pivot_root . .old
umount -l /.old
rmdir /.old
exec env -i container=vbr PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --log-target=journal --show-status=no < /dev/null
