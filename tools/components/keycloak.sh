# shellcheck shell=bash
# Keycloak with the realm `mail`, over https with a certificate of the private CA.

KEYCLOAK_JVM='-XX:TieredStopAtLevel=1 -XX:-UseG1GC -XX:+UseSerialGC' # quick to start; the heap's default limit is 512 MiB

# The stack's Keycloak home: the program linked from the cache, the database that tools/setup filled once, and the realm.
make_keycloak_home() { # HOME
    local cached
    cached=$(keycloak_dir)
    rm -rf "$1"
    mkdir -p "$1"/data/{h2,import}
    ln -s "$cached"/{conf,lib,providers,themes} "$1/"
    cp "$cached"/data/h2/* "$1/data/h2/"
    cp "$TOOLS/keycloak/realm.json" "$1/data/import/"
    (umask 077 && cat >"$1/secrets" <<END
KEYCLOAK_ADMIN_PASSWORD=$KEYCLOAK_TEMPLATE_PASSWORD
KEYCLOAK_CLIENT_SECRET=$(random_secret)
KEYCLOAK_EXCHANGE_CLIENT_SECRET=$(random_secret)
DOVECOT_CLIENT_SECRET=$(random_secret)
PERSON_PASSWORD=$(random_secret)
END
    )
}

start_keycloak() {
    local home=$DIR/keycloak
    [[ -f $home/secrets ]] || make_keycloak_home "$home"
    issue_localhost
    put_keycloak_env

    # The environment has the values for the placeholders of the realm file.
    set -a
    . "$DIR/run/keycloak.env"
    . "$home/secrets"
    ACCESS_TOKEN_LIFESPAN=${ACCESS_TOKEN_LIFESPAN:-300}
    set +a
    JAVA_OPTS_APPEND=$KEYCLOAK_JVM launch keycloak "$(keycloak_dir)/bin/kc.sh" "-Dkc.home.dir=$home" start --optimized \
        --import-realm --hostname "${KEYCLOAK_ISSUER%/realms/mail}" --http-enabled false --http-host 127.0.0.1 \
        --https-port "$(port keycloak)" --https-certificate-file "$DIR/pki/localhost.crt" \
        --https-certificate-key-file "$DIR/pki/localhost.key" --truststore-paths "$DIR/pki/ca.crt"
}

put_keycloak_env() {
    local issuer
    issuer=https://$STACK_HOST:$(port keycloak)/realms/mail
    . "$DIR/keycloak/secrets"
    put_env keycloak "KEYCLOAK_URL=https://localhost:$(port keycloak)" "KEYCLOAK_ISSUER=$issuer" \
        "KEYCLOAK_TOKEN_URL=$issuer/protocol/openid-connect/token" \
        KEYCLOAK_ADMIN_USER=admin "KEYCLOAK_ADMIN_PASSWORD=$KEYCLOAK_ADMIN_PASSWORD" \
        KEYCLOAK_CLIENT_ID=shop-mailer "KEYCLOAK_CLIENT_SECRET=$KEYCLOAK_CLIENT_SECRET" MAILBOX=billing@shop.example \
        KEYCLOAK_EXCHANGE_CLIENT_ID=shop-exchange "KEYCLOAK_EXCHANGE_CLIENT_SECRET=$KEYCLOAK_EXCHANGE_CLIENT_SECRET" \
        KEYCLOAK_DESKTOP_CLIENT_ID=shop-desktop "PERSON_USER=$PERSON_USER" OTHER_USER=other@shop.example \
        "PERSON_PASSWORD=$PERSON_PASSWORD"
}

ready_keycloak() {
    curl -sf -o /dev/null --cacert "$DIR/pki/ca.crt" "https://localhost:$(port keycloak)/realms/mail" || return
    [[ $(. "$DIR/keycloak/secrets" && echo "$KEYCLOAK_ADMIN_PASSWORD") != "$KEYCLOAK_TEMPLATE_PASSWORD" ]] ||
        own_admin_password
}

# Sets this stack's own password for the administrator of the cached database.
own_admin_password() {
    local id password
    password=$(random_secret)
    id=$("$TOOLS/keycloak-admin" "$DIR" GET '/realms/master/users?username=admin' | sed -E 's/.*"id":"([^"]+)".*/\1/') &&
        "$TOOLS/keycloak-admin" "$DIR" PUT "/realms/master/users/$id/reset-password" \
            "{\"type\": \"password\", \"value\": \"$password\"}" &&
        printf 'KEYCLOAK_ADMIN_PASSWORD=%s\n' "$password" >>"$DIR/keycloak/secrets" &&
        put_keycloak_env
}
