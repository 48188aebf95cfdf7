# shellcheck shell=bash
# The bridge to which all pods are attached, kube-proxy, and DNS.

# A file of /proc/sys/net/ipv4 and its value on this machine before.
FORWARDING=(ip_forward conf/all/route_localnet)

# The bridge has the addresses of both nodes. Pods reach the servers that listen on this machine's 127.0.0.1, such as those of
# tools/stack, at the same port of ADDRESS.
bridge_up() {
    local file node
    ip link show "$BRIDGE" >/dev/null 2>&1 && [[ ! -e $DIR/run/bridge ]] &&
        die "another cluster has the bridge $BRIDGE: stop it with tools/node down"
    if [[ -e $DIR/run/bridge ]]; then return; fi
    for file in "${FORWARDING[@]}"; do cat "/proc/sys/net/ipv4/$file" >"$DIR/run/before-${file//\//-}"; done
    touch "$DIR/run/bridge"
    ip link add "$BRIDGE" type bridge
    for node in "${NODES[@]}"; do ip address add "${NODE_ADDRESS[$node]}/24" dev "$BRIDGE"; done
    ip link set "$BRIDGE" up
    for file in "${FORWARDING[@]}"; do echo 1 >"/proc/sys/net/ipv4/$file"; done
    iptables -t nat -I PREROUTING -i "$BRIDGE" -d "$ADDRESS" -p tcp -m multiport ! --dports "53,$(port kube-apiserver)" \
        -m comment --comment "$BRIDGE" -j DNAT --to-destination 127.0.0.1
}

bridge_down() {
    local file table rule
    if [[ ! -e $DIR/run/bridge ]]; then return; fi
    "$(tool_path kube-proxy)" --cleanup >/dev/null 2>&1 || true
    for table in nat filter; do # its own rules, and those of tests
        while read -r rule; do
            xargs iptables -t "$table" <<<"-D ${rule#-A }" || true
        done < <(iptables -t "$table" -S | grep "^-A .*-i $BRIDGE ")
    done
    kubelet_rules_down
    ip link delete "$BRIDGE" 2>/dev/null || true
    for file in "${FORWARDING[@]}"; do cat "$DIR/run/before-${file//\//-}" >"/proc/sys/net/ipv4/$file"; done
    rm "$DIR/run/bridge"
}

# Answers from the files in DIR/hosts, which it reads as they appear.
start_dns() {
    printf '%s kubernetes.default.svc.cluster.local\n' "$API_SERVICES.1" >"$DIR/hosts/kubernetes"
    launch dns dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --bind-interfaces \
        --listen-address="$ADDRESS" --interface="$BRIDGE" --except-interface=lo --no-resolv --no-hosts --hostsdir="$DIR/hosts" \
        --log-facility=-
}

ready_dns() { (exec 3<>"/dev/tcp/$ADDRESS/53"); }

# masqueradeAll: a reply from one pod to another does not leave the bridge, so it would miss the translation of addresses.
start_proxy() {
    local config=$DIR/run/proxy
    issue proxy /CN=system:kube-proxy clientAuth
    (umask 077 && kubeconfig proxy >"$config.kubeconfig")
    cat >"$config.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
iptables: {masqueradeAll: true}
hostnameOverride: node-1
clientConnection: {kubeconfig: $config.kubeconfig}
clusterCIDR: $POD_NETWORK
bindAddress: $ADDRESS
healthzBindAddress: 127.0.0.1:$(port kube-proxy)
metricsBindAddress: 127.0.0.1:$(port kube-proxy-metrics)
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
END
    launch kube-proxy "$(tool_path kube-proxy)" --config "$config.yaml"
}

ready_proxy() { curl -sf -o /dev/null "http://127.0.0.1:$(port kube-proxy-metrics)/metrics"; }
