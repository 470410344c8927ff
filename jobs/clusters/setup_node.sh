#!/bin/bash
# Makes a node ready, once and again without harm: setup_node.sh [DEVICE OF THE SHARED VOLUME, as mount takes it [TYPE]]
set -euo pipefail

chmod 700 "$HOME/.ray" && chmod 600 "$HOME/.ray/auth_token"
mkdir -p -m 700 "$HOME/.haproxy"

# HAProxy's statistics listen on every address and can't be told otherwise: loopback only.
close=(INPUT ! -i lo -p tcp -m multiport --dports 8404,9101 -j DROP)
sudo iptables -C "${close[@]}" 2>/dev/null || sudo iptables -A "${close[@]}"

if [[ $# -gt 0 ]] && ! mountpoint -q /shared; then
    sudo mkdir -p /shared
    sudo mount -t "${2:-nfs4}" "$1" /shared
    sudo mkdir -p /shared/trimtab /shared/models /shared/runs
    sudo chown "$(id -u):$(id -g)" /shared/trimtab /shared/models /shared/runs
fi

make -C "$HOME/trimtab" setup EXTRA=gpu
