# shellcheck shell=bash
# What "make e2e" and "make soak-mail" share: the cluster, the images, the charts, and what a failure prints.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PODS=$ROOT/tests/pods
DIR=$ROOT/target/pods
. "$ROOT/tools/lib.sh"

BROKERS=mail-token-broker                      # the release and its namespace
SERVER_NAME=mail.shop.example                  # Keycloak, Dovecot and Postfix, for pods
SERVER_ADDRESS=10.77.0.1                       # of tools/node
PROGRAMS=localhost/mail-token-broker-programs:1 # the image of the pods' programs, with these Debian packages
PACKAGES=python3,msmtp,postfix,libsasl2-modules,ca-certificates
PATIENCE=180                                   # seconds until what should happen at once counts as broken

export PROGRAMS

step() { printf '\n== %s\n' "$*"; }
note() { printf '   %(%T)T  %s\n' -1 "$*"; }

# Waits until a command succeeds.
until_ok() { # SECONDS WHAT COMMAND...
    local deadline=$((SECONDS + $1)) what=$2; shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || { say "not in time: $what"; return 1; }
        sleep 0.5
    done
}

# Prints the archive of the programs' image, which is in the cache.
programs_image() {
    local archive=$CACHE/pods-$PACKAGES.tar root container
    if [[ ! -e $archive ]]; then
        say "building the image of the pods' programs, once"
        root=$(mktemp -d)
        mmdebstrap --quiet --variant=minbase --include=$PACKAGES --dpkgopt='path-exclude=/usr/share/doc/*' \
            --dpkgopt='path-exclude=/usr/share/man/*' "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" "$root/root.tar" - < <(debian_sources) >&2
        container=$(buildah from scratch)
        buildah add --quiet "$container" "$root/root.tar" / >/dev/null
        buildah config --env PATH=/usr/local/bin:/usr/bin:/bin --user 65534:65534 "$container"
        buildah commit --quiet --rm "$container" "$PROGRAMS" >/dev/null
        rm -rf "$root"
        buildah push --quiet "$PROGRAMS" "docker-archive:$archive.tmp:$PROGRAMS"
        mv "$archive.tmp" "$archive"
    fi
    printf '%s\n' "$archive"
}

# Builds both images of this commit (with IMAGES=keep: uses those of the last run), and packages both charts twice: as they are, and as
# version 0.0.9, from which they are upgraded.
build() {
    local name
    tools/setup control-plane chart keycloak mail image node
    mkdir -p "$DIR/charts" "$DIR/images"
    for name in broker relay; do
        [[ ${IMAGES-} == keep && -e $DIR/images/$name.tar ]] || tools/build-image --only "$name" --archive "$DIR/images/$name.tar"
        tools/run helm package --destination "$DIR/charts" "charts/mail-token-$name" >/dev/null
        tools/run helm package --destination "$DIR/charts" --version 0.0.9 "charts/mail-token-$name" >/dev/null
    done
    export VERSION
    VERSION=$(sed -n 's/^version: //p' charts/mail-token-broker/Chart.yaml)
}

# The cluster with all images, Keycloak, Dovecot and Postfix; tokens with a lifetime of this many seconds.
start() { # TOKEN-LIFETIME
    tools/node down "$DIR"
    # Keycloak first: it gives up if its database responds late, while the cluster occupies the machine.
    ACCESS_TOKEN_LIFESPAN=$1 MTB_STACK_HOST=$SERVER_NAME tools/stack up "$DIR" keycloak mail
    tools/node up "$DIR"
    tools/node name "$DIR" "$SERVER_NAME" "$SERVER_ADDRESS"
    tools/node image "$DIR" "$DIR"/images/*.tar "$(programs_image)"
    set -a
    # shellcheck source=/dev/null
    . "$DIR/env"
    set +a
    PATH=$TOOLS_BIN:$PATH
}

# At the end of the script: shows the pods and their logs after a failure, then stops everything.
finish() {
    local status=$?
    trap - EXIT
    if ((status)) && [[ -e $DIR/kubeconfig ]]; then
        set +e
        export KUBECONFIG=$DIR/kubeconfig PATH=$DIR/bin:$PATH
        step "failed: the pods"
        kubectl get pods,mailcredentials,mailproviders -A -o wide
        kubectl describe pods -A | grep -v '^ *$' | tail -n 200
        for namespace in shop letters "$BROKERS"; do
            for pod in $(kubectl -n "$namespace" get pods -o name); do
                step "failed: the log of $pod"
                kubectl -n "$namespace" logs "$pod" --all-containers --prefix --tail 30
            done
        done
        kubectl get events -A --sort-by=.lastTimestamp | tail -n 40
    fi >&2
    if [[ ${KEEP-} ]]; then note "KEEP: the cluster runs on. Stop it with: tools/node down $DIR"
    else tools/node down "$DIR"
    fi
    exit "$status"
}

# A namespace whose pods must satisfy a level of the Pod Security Standards.
namespace() { # NAME [LEVEL]
    kubectl create namespace "$1"
    kubectl label namespace "$1" "pod-security.kubernetes.io/enforce=${2:-restricted}"
}

# Values of the broker's chart on this cluster, with NetworkPolicies for the ports that are used here.
broker_values() {
    cat <<END
image: {repository: localhost/mail-token-broker}
allowPrivateCIDRs: [$SERVER_ADDRESS/32]
networkPolicy:
  enabled: true
  apiServerPorts: [${KUBE_SERVER##*:}]
  providerPorts: [${KEYCLOAK_ISSUER//[!0-9]/}]
END
}

install_broker() { # CHART-VERSION
    broker_values >"$DIR/broker.yaml"
    helm install "$BROKERS" "$DIR/charts/mail-token-broker-$1.tgz" --namespace "$BROKERS" --values "$DIR/broker.yaml" \
        --wait --timeout 3m --hide-notes
}

upgrade_broker() { # CHART-VERSION [OPTION...]
    helm upgrade "$BROKERS" "$DIR/charts/mail-token-broker-$1.tgz" --namespace "$BROKERS" --values "$DIR/broker.yaml" \
        --wait --timeout 5m --hide-notes "${@:2}"
}

# Applies demo/*.yaml to a namespace: the provider, and the credential with tokens that are valid for a minute at least when a pod
# reads them.
apply_credential() { # NAMESPACE
    tools/demo-apply "$DIR" "$1"
    kubectl -n "$1" patch mailcredential billing --type merge --patch '{"spec": {"renewal": {"minValidity": "1m"}}}'
    kubectl -n "$1" wait --for=condition=Ready mailcredential/billing --timeout="${PATIENCE}s"
    kubectl -n "$1" create configmap programs --from-file="$PODS/programs" --from-file=example.py=<(python_of_docs) \
        --from-file=msmtprc=<(msmtp_of_docs) --from-file=main.cf=<(postfix_of_docs)
}

apply_pods() { # NAMESPACE MANIFEST...
    local name namespace=$1; shift
    for name; do
        # shellcheck disable=SC2016 # the variables that it replaces
        envsubst '$PROGRAMS $VERSION $MAILBOX $TOKEN_LIFETIME $LOGIN_PERIOD' <"$PODS/manifests/$name.yaml" |
            kubectl -n "$namespace" apply -f -
    done
}

# What the docs show, with a mailbox that this mail server knows, or with this mail server.
python_of_docs() {
    # shellcheck disable=SC2016 # backticks of Markdown
    sed -n '/^```python$/,/^```$/{//!p}' docs/pods.md | sed "s/you@example.org/$MAILBOX/"
}

msmtp_of_docs() {
    sed -n '/^account default$/,/^passwordeval /p' docs/pods.md |
        sed "s/smtp.office365.com/$SERVER_NAME/; s/^port 587$/port $SUBMISSION_PORT/; s/billing@contoso.com/$MAILBOX/"
}

postfix_of_docs() {
    # shellcheck disable=SC2016 # backticks of Markdown
    sed -n '/^```text$/,/^```$/{//!p}' docs/relay/postfix.md | sed "s/billing@contoso.com/$MAILBOX/"
}

leader() { kubectl -n "$BROKERS" get lease "$BROKERS" -o jsonpath='{.spec.holderIdentity}' | cut -d_ -f1; }

# Waits until a pod other than this one leads.
other_leads() { # POD
    local now deadline=$((SECONDS + PATIENCE))
    until now=$(leader) && [[ $now && $now != "$1" ]]; do
        ((SECONDS < deadline)) || die "the leader is still $1"
        sleep 0.2
    done
}

# Prints each pod of a namespace with the restarts of its containers.
restarts() { # NAMESPACE
    kubectl -n "$1" get pods -o go-template='{{range .items}}{{.metadata.name}}:{{range .status.initContainerStatuses}} {{.restartCount}}{{end}}{{range .status.containerStatuses}} {{.restartCount}}{{end}}{{"\n"}}{{end}}'
}

not_restarted() { # NAMESPACE
    ! restarts "$1" | grep ': .*[1-9]' || die "a container was restarted"
}
