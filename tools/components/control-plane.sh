# shellcheck shell=bash
# etcd and kube-apiserver, with RBAC, client certificates and an audit log.

# tools/node sets these: its pods connect to the API server.
API_ADDRESS=127.0.0.1
API_SERVICES=10.96.0 # the first three bytes of the range of Services
API_FLAGS=(--endpoint-reconciler-type none)

kubeconfig() { # NAME-OF-CERTIFICATE
    cat <<END
apiVersion: v1
kind: Config
clusters:
- name: stack
  cluster: {server: "https://$API_ADDRESS:$(port kube-apiserver)", certificate-authority-data: $(base64 -w0 "$DIR/pki/ca.crt")}
users:
- name: $1
  user: {client-certificate-data: $(base64 -w0 "$DIR/pki/$1.crt"), client-key-data: $(base64 -w0 "$DIR/pki/$1.key")}
contexts:
- name: stack
  context: {cluster: stack, user: $1}
current-context: stack
END
}

start_control_plane() {
    start_etcd
    start_kube_apiserver
}

start_etcd() {
    local etcd_url peer_url
    etcd_url=http://127.0.0.1:$(port etcd)
    peer_url=http://127.0.0.1:$(port etcd-peer)

    launch etcd "$(tool_path etcd)" --data-dir "$DIR/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls "$etcd_url" --advertise-client-urls "$etcd_url" \
        --listen-peer-urls "$peer_url" --initial-advertise-peer-urls "$peer_url" --initial-cluster "default=$peer_url"
}

start_kube_apiserver() {
    local issuer pki=$DIR/pki
    issue kube-apiserver /CN=kube-apiserver serverAuth \
        "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:$API_ADDRESS,IP:$API_SERVICES.1"
    issue admin /O=system:masters/CN=admin clientAuth
    [[ -f $pki/service-account.key ]] ||
        openssl ecparam -name prime256v1 -genkey -noout -out "$pki/service-account.key"

    # Do not rotate the audit log: the tests read it while it grows.
    issuer=https://localhost:$(port kube-apiserver)
    launch kube-apiserver "$(tool_path kube-apiserver)" --etcd-servers "http://127.0.0.1:$(port etcd)" \
        --bind-address "$API_ADDRESS" --advertise-address "$API_ADDRESS" --secure-port "$(port kube-apiserver)" \
        --service-cluster-ip-range "$API_SERVICES.0/24" "${API_FLAGS[@]}" \
        --tls-cert-file "$pki/kube-apiserver.crt" --tls-private-key-file "$pki/kube-apiserver.key" \
        --client-ca-file "$pki/ca.crt" --authorization-mode Node,RBAC \
        --service-account-issuer "$issuer" --service-account-jwks-uri "$issuer/openid/v1/jwks" \
        --service-account-key-file "$pki/service-account.key" \
        --service-account-signing-key-file "$pki/service-account.key" \
        --audit-policy-file "$TOOLS/control-plane/audit-policy.yaml" \
        --audit-log-path "$DIR/logs/audit.log" --audit-log-maxsize 10000

    (umask 077 && kubeconfig admin >"$DIR/kubeconfig")
    put_env control-plane "KUBECONFIG=$DIR/kubeconfig" "KUBE_SERVER=https://$API_ADDRESS:$(port kube-apiserver)" \
        "AUDIT_LOG=$DIR/logs/audit.log"
}

# The server creates the namespace `default` shortly after it reports ready.
ready_control_plane() {
    local path
    for path in /readyz /api/v1/namespaces/default; do
        curl -sf -o /dev/null --cacert "$DIR/pki/ca.crt" --cert "$DIR/pki/admin.crt" --key "$DIR/pki/admin.key" \
            "https://$API_ADDRESS:$(port kube-apiserver)$path" || return
    done
}
