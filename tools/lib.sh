# shellcheck shell=bash
# Functions that the scripts of tools/ share: messages, the cache, waiting, ports and processes.

# shellcheck disable=SC2034 # used by the scripts that source this file
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${MTB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mail-token-broker}

KEYCLOAK_VERSION=26.4.2
KEYCLOAK_TEMPLATE_PASSWORD=template # of the administrator in the cached database; every stack sets its own
declare -A CARGO_COMMANDS=([cargo-cyclonedx]=0.5.9 [cargo-deny]=0.20.2 [cargo-fuzz]=0.13.2 [cargo-mutants]=27.1.0)
# The versions of the API server that "make compat" uses in addition to that of all other tests: the oldest and the newest
# supported. If MTB_KUBERNETES names one of them, stacks use that API server.
COMPAT=(1.31 1.37)
MAIL_USER=mtb-vmail # owns the Maildirs
PERSON_USER=person@shop.example # the account and mailbox of a test user

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# Runs a command as root, with sudo if necessary.
as_root() {
    if [[ $EUID == 0 ]]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "not root, and no sudo for: $*"
    fi
}

# Prints this machine's package sources, for mmdebstrap.
debian_sources() {
    if [[ -e /etc/apt/sources.list.d/debian.sources ]]; then cat /etc/apt/sources.list.d/debian.sources; else cat /etc/apt/sources.list; fi
}

# Prints the cache folder of a component, keyed by the content of the files that define it.
keyed() { # NAME FILE...
    local name=$1; shift
    printf '%s/%s-%s\n' "$CACHE" "$name" "$(cat "$@" | sha256sum | cut -c1-16)"
}

go_dir() ( # MODULE
    shopt -s nullglob # most modules have no program of their own
    keyed "$1" "$TOOLS/go/$1/go.mod" "$TOOLS/go/$1/go.sum" "$TOOLS/go/$1"/*.go
)
keycloak_dir() { keyed "keycloak-$KEYCLOAK_VERSION" "$TOOLS/keycloak/build.conf"; }
oidc_provider_dir() { keyed oidc-provider "$TOOLS/oidc-provider/package.json" "$TOOLS/oidc-provider/package-lock.json"; }
programs_dir() { keyed programs "$TOOLS"/programs/{package.json,package-lock.json,jars}; }
email_proxy_dir() { keyed email-oauth2-proxy "$TOOLS/email-oauth2-proxy/requirements.txt"; }
cargo_command_dir() { printf '%s/%s-%s\n' "$CACHE" "$1" "${CARGO_COMMANDS[$1]}"; } # NAME

# Prints the path of a command of tools/setup; empty and 1 if the command is not built.
tool_path() { # COMMAND
    local dir
    case $1 in
        kube-apiserver) dir=$(go_dir "kubernetes${MTB_KUBERNETES:+-$MTB_KUBERNETES}") ;;
        kube-controller-manager | kubectl) dir=$(go_dir kubernetes) ;;
        kube-scheduler | kubelet | kube-proxy) dir=$(go_dir kubernetes-node) ;;
        alertmanager | etcd | helm | helm-unittest | kstatus | kubeconform) dir=$(go_dir "$1") ;;
        cargo-*) dir=$(cargo_command_dir "$1")/bin ;;
        *) return 1 ;;
    esac
    [[ -x $dir/$1 ]] && printf '%s/%s\n' "$dir" "$1"
}
