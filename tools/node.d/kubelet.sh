# shellcheck shell=bash
# One node: containerd and a kubelet, with all their data in DIR/NODE.

PAUSE=localhost/mail-token-broker-pause:1

node_up() { # NODE
    node=$1
    if ! alive "containerd-$node"; then
        halt "containerd-$node"
        start_containerd
        await containerd 60 "containerd-$node"
        containers "$node" images import "$(pause_image)" >/dev/null
    fi
    if ! alive "kubelet-$node"; then
        halt "kubelet-$node"
        start_kubelet
        await kubelet 60 "kubelet-$node"
    fi
}

containers() { # NODE ARGUMENT...
    ctr --address "$DIR/$1/containerd.sock" --namespace k8s.io "${@:2}"
}

# Prints the archive of the image of a pod's first container, which only waits.
pause_image() {
    local archive=$CACHE/pause-1.tar container
    if [[ ! -e $archive ]]; then
        container=$(buildah from scratch)
        buildah add --quiet "$container" "$(command -v busybox)" /sleep >/dev/null
        buildah config --user 65534:65534 --entrypoint '["/sleep", "infinity"]' "$container"
        buildah commit --quiet --rm "$container" "$PAUSE" >/dev/null
        buildah push --quiet "$PAUSE" "docker-archive:$archive.tmp:$PAUSE"
        mv "$archive.tmp" "$archive"
    fi
    printf '%s\n' "$archive"
}

# restrict_oom_score_adj: containers on a machine without CAP_SYS_RESOURCE do not start otherwise.
start_containerd() {
    local home=$DIR/$node
    mkdir -p "$home" "$DIR/cni/net.d"
    cat >"$DIR/cni/net.d/pods.conflist" <<END
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "$BRIDGE", "isGateway": false, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$DIR/cni/addresses", "routes": [{"dst": "0.0.0.0/0", "gw": "$ADDRESS"}],
            "ranges": [[{"subnet": "$POD_NETWORK", "gateway": "$ADDRESS", "rangeStart": "${POD_NETWORK%.*}.10"}]]}}]}
END
    cat >"$home/containerd.toml" <<END
version = 2
root = "$home/containerd"
state = "$home/run"
[grpc]
  address = "$home/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$home/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$DIR/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
END
    launch "containerd-$node" containerd --config "$home/containerd.toml"
}

ready_containerd() { containers "$node" version >/dev/null; }

# Each kubelet has cgroups of its own: it deletes those of pods that it does not know.
start_kubelet() {
    local home=$DIR/$node pki=$DIR/pki controller
    issue "kubelet-$node" "/O=system:nodes/CN=system:node:$node" clientAuth
    issue "kubelet-$node-server" "/CN=$node" serverAuth "IP:${NODE_ADDRESS[$node]},DNS:$node"
    (umask 077 && kubeconfig "kubelet-$node" >"$home/kubeconfig")
    for controller in /sys/fs/cgroup /sys/fs/cgroup/*/; do
        if [[ -w $controller/cgroup.procs ]]; then mkdir -p "$controller/$BRIDGE-$node"; fi
    done
    printf 'nameserver %s\n' "$ADDRESS" >"$home/resolv.conf"
    cat >"$home/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$BRIDGE-$node
enforceNodeAllocatable: []
failSwapOn: false
imageGCHighThresholdPercent: 100 # no registry has a deleted image
address: ${NODE_ADDRESS[$node]}
healthzPort: $(port "kubelet-$node")
containerRuntimeEndpoint: unix://$home/containerd.sock
clusterDNS: [$ADDRESS]
clusterDomain: cluster.local
resolvConf: $home/resolv.conf
tlsCertFile: $pki/kubelet-$node-server.crt
tlsPrivateKeyFile: $pki/kubelet-$node-server.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
podLogsDir: $DIR/logs/pods-$node
volumePluginDir: $home/plugins
END
    launch "kubelet-$node" "$(tool_path kubelet)" --config "$home/kubelet.yaml" --kubeconfig "$home/kubeconfig" \
        --hostname-override "$node" --node-ip "${NODE_ADDRESS[$node]}" --root-dir "$home/kubelet"
}

ready_kubelet() { curl -sf -o /dev/null "http://127.0.0.1:$(port "kubelet-$node")/healthz"; }

# Stops the kubelet, containerd and its helpers, and every process of the node's cgroups; then removes network namespaces, mounts and cgroups. It
# sends no request to containerd, which may be dead.
node_down() { # NODE
    local node=$1 home=$DIR/$1 item namespaces processes
    namespaces=$(grep -rhoE 'cni-[0-9a-f-]{36}' "$home"/run/*.task/k8s.io/*/config.json 2>/dev/null | sort -u) || true
    halt "kubelet-$node"
    halt "containerd-$node"
    # Only helpers of this cluster have this socket in their arguments.
    for item in $(pgrep -f "containerd-shim.*-address $home/containerd.sock"); do kill -KILL "$item" 2>/dev/null || true; done
    for _ in {1..50}; do
        processes=$(find /sys/fs/cgroup -path "*/$BRIDGE-$node/*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u)
        [[ $processes ]] || break
        # shellcheck disable=SC2086 # numbers
        kill -KILL $processes 2>/dev/null || true
        sleep 0.1
    done
    for item in $namespaces; do ip netns delete "$item" 2>/dev/null || true; done
    awk -v home="$home/" 'index($2, home) == 1 {print $2}' /proc/mounts | sort -r | while read -r item; do
        umount "$item" 2>/dev/null || umount -l "$item" || true
    done
    for item in /sys/fs/cgroup/"$BRIDGE-$node" /sys/fs/cgroup/*/"$BRIDGE-$node"; do
        [[ ! -d $item ]] || find "$item" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
}

# The chains of iptables that kubelets leave.
kubelet_rules_down() {
    local item tables
    for tables in iptables ip6tables; do
        for item in INPUT OUTPUT; do "$tables" -D "$item" -j KUBE-FIREWALL 2>/dev/null || true; done
        for item in filter/KUBE-FIREWALL {filter,nat,mangle}/KUBE-KUBELET-CANARY mangle/KUBE-IPTABLES-HINT; do
            "$tables" -t "${item%/*}" -F "${item#*/}" 2>/dev/null || true
            "$tables" -t "${item%/*}" -X "${item#*/}" 2>/dev/null || true
        done
    done
}
