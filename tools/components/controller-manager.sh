# shellcheck shell=bash
# kube-controller-manager: garbage collection, deletion of namespaces, ServiceAccounts.

CONTROLLERS=garbage-collector-controller,namespace-controller,serviceaccount-controller
CONTROLLERS+=,serviceaccount-token-controller,root-ca-certificate-publisher-controller
CONTROLLERS+=,clusterrole-aggregation-controller,resourcequota-controller
CONTROLLERS+=,validatingadmissionpolicy-status-controller

start_controller_manager() {
    local pki=$DIR/pki
    issue controller-manager /CN=system:kube-controller-manager clientAuth
    (umask 077 && kubeconfig controller-manager >"$DIR/run/controller-manager.kubeconfig")
    await_component control-plane
    launch kube-controller-manager "$(tool_path kube-controller-manager)" \
        --kubeconfig "$DIR/run/controller-manager.kubeconfig" --controllers "$CONTROLLERS" --leader-elect=false \
        --bind-address 127.0.0.1 --secure-port "$(port kube-controller-manager)" --cert-dir "$DIR/run" \
        --use-service-account-credentials --service-account-private-key-file "$pki/service-account.key" \
        --root-ca-file "$pki/ca.crt"
}

# The controller manager works once it has created the ServiceAccount of the namespace `default`.
ready_controller_manager() {
    curl -sf -o /dev/null --cacert "$DIR/pki/ca.crt" --cert "$DIR/pki/admin.crt" --key "$DIR/pki/admin.key" \
        "https://$API_ADDRESS:$(port kube-apiserver)/api/v1/namespaces/default/serviceaccounts/default"
}
