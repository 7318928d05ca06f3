#!/bin/bash
# What runs in one machine of `tests.helpers.hosts`: it mounts private folders over shared ones, and then runs an SSH
# server for ever. It is called in namespaces of its own (mount, pid, network, uts), with four arguments: the machine's
# folder, its name, the virtual environment and the project's folder.
set -eu
own=$1 name=$2 venv=$3 code=$4
hostname "$name"
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/home /mnt/shared /mnt/empty /mnt/venv /mnt/own
mount --bind "$own/../shared" /mnt/shared
mount --bind "$own" /mnt/own
mount --bind "$own/home" /mnt/home
mount --bind "$venv" /mnt/venv
mount --bind "$own/passwd" /etc/passwd
# Only the code that a job brings with it may run, so the code at its usual path is hidden.
for package in ali_dist tuning cluster; do
    mount --bind /mnt/empty "$code/$package"
done
mkdir -p "$own/tmp"
mount --bind "$own/tmp" /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mkdir -p "$venv" # it may have been in a folder that is hidden now
[ -e "$venv/bin/python" ] || mount --bind /mnt/venv "$venv"
if [ -e /mnt/home/ali/venv ]; then
    mount --bind /mnt/venv /mnt/home/ali/venv
    mount -o remount,bind,ro /mnt/home/ali/venv
fi
if [ -e /mnt/own/sshd_config ]; then
    exec /usr/sbin/sshd -D -e -f /mnt/own/sshd_config
fi
exec sleep infinity
