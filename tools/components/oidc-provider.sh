# shellcheck shell=bash
# The certified OpenID provider of npm, over https with a certificate of the private CA.

# One key of each kind for the client that authenticates with private_key_jwt.
make_client_keys() { # FOLDER
    local kind
    local -A options=([rsa]='-algorithm RSA' [ec]='-algorithm EC -pkeyopt ec_paramgen_curve:P-256' [ed25519]='-algorithm ED25519')
    mkdir -p "$1"
    for kind in "${!options[@]}"; do
        # shellcheck disable=SC2086 # several words
        [[ -f $1/$kind.key ]] || (umask 077 && openssl genpkey ${options[$kind]} -out "$1/$kind.key" 2>/dev/null)
    done
}

# The program is next to a link to npm's modules, because Node searches there.
make_oidc_provider_home() { # HOME
    mkdir -p "$1"
    ln -sfn "$(oidc_provider_dir)/node_modules" "$1/node_modules"
    cp "$TOOLS/oidc-provider/server.mjs" "$1/"
    make_client_keys "$1/client-keys"
    # With characters that HTTP Basic requires encoded (RFC 6749, 2.3.1).
    [[ -f $1/secret ]] || (umask 077 && printf '%s+%%:/\n' "$(random_secret)" >"$1/secret")
}

start_oidc_provider() {
    local home=$DIR/oidc-provider
    make_oidc_provider_home "$home"
    issue_localhost
    put_env oidc-provider "OIDC_ISSUER=https://localhost:$(port oidc-provider)" \
        OIDC_CLIENT_ID=shop-mailer "OIDC_CLIENT_SECRET=$(<"$home/secret")" OIDC_BASIC_CLIENT_ID=shop-mailer-basic \
        OIDC_JWT_CLIENT_ID=shop-mailer-jwt "OIDC_JWT_KEYS=$home/client-keys" OIDC_NATIVE_CLIENT_ID=shop-desktop \
        "PERSON_USER=$PERSON_USER"
    . "$DIR/run/oidc-provider.env"
    TLS_CERT=$DIR/pki/localhost.crt TLS_KEY=$DIR/pki/localhost.key ACCESS_TOKEN_LIFESPAN=${ACCESS_TOKEN_LIFESPAN:-300} \
        launch oidc-provider "$(oidc_provider_dir)/node" "$home/server.mjs"
}

ready_oidc_provider() {
    curl -sf -o /dev/null --cacert "$DIR/pki/ca.crt" \
        "https://localhost:$(port oidc-provider)/.well-known/openid-configuration"
}
