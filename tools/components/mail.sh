# shellcheck shell=bash
# Dovecot (IMAP, POP3, submission) and Postfix (submission), which accept logins with Keycloak's tokens.

# The servers' users must reach the folder, and socket paths must be short: the folder is next to DIR, not in it.
mail_home() {
    if [[ ! -f $DIR/run/mail.home ]]; then
        mktemp -d /tmp/mtb-mail.XXXXXX >"$DIR/run/mail.home"
        ln -sfn "$(<"$DIR/run/mail.home")/mail" "$DIR/mail"
    fi
    cat "$DIR/run/mail.home"
}

mail_config() { # TEMPLATE NAME=VALUE...
    local template=$1 pair expressions=(); shift
    for pair; do expressions+=(-e "s|@${pair%%=*}@|${pair#*=}|g"); done
    sed "${expressions[@]}" "$TOOLS/mail/$template"
}

start_mail() {
    [[ $EUID == 0 ]] || fail 'mail: Dovecot and Postfix must be started by root'
    local home values
    home=$(mail_home)
    . "$DIR/keycloak/secrets"
    issue_localhost
    values=("home=$home" "pki=$DIR/pki" "logs=$DIR/logs" "user=$MAIL_USER" "instance=${home##*/}"
        "issuer=https://localhost:$(port keycloak)/realms/mail" "secret=$DOVECOT_CLIENT_SECRET"
        "imap_port=$(port imap)" "pop3_port=$(port pop3)" "submission_port=$(port submission)"
        "imap_starttls_port=$(port imap_starttls)" "pop3_starttls_port=$(port pop3_starttls)"
        "submissions_port=$(port submissions)" "dovecot_submission_port=$(port dovecot_submission)"
        "dovecot_submissions_port=$(port dovecot_submissions)")

    chmod 755 "$home"
    mkdir -p "$home"/{postfix,postfix-queue}
    install -d -o "$MAIL_USER" -g "$MAIL_USER" -m 700 "$home/mail"
    install -d -o postfix -m 700 "$home/postfix-data"
    cp "$DIR/pki/ca.crt" "$home/"
    install -o dovecot -m 600 /dev/null "$home/dovecot-oauth2.conf"
    mail_config dovecot-oauth2.conf "${values[@]}" >"$home/dovecot-oauth2.conf"
    mail_config dovecot.conf "${values[@]}" >"$home/dovecot.conf"
    mail_config main.cf "${values[@]}" >"$home/postfix/main.cf"
    mail_config master.cf "${values[@]}" >"$home/postfix/master.cf"

    rm -f "$home/dovecot/master.pid" # a killed Dovecot leaves this file
    launch dovecot /usr/sbin/dovecot -F -c "$home/dovecot.conf"
    # This command creates the folders of the queue.
    postfix -c "$home/postfix" check >>"$DIR/logs/postfix.log" 2>&1 || fail 'mail: postfix check failed' postfix
    launch postfix "$(postconf -h daemon_directory)/master" -s -c "$home/postfix"

    put_env mail "IMAP_HOST=$STACK_HOST" "IMAP_PORT=$(port imap)" "POP3_HOST=$STACK_HOST" "POP3_PORT=$(port pop3)" \
        "SUBMISSION_HOST=$STACK_HOST" "SUBMISSION_PORT=$(port submission)" \
        "IMAP_STARTTLS_PORT=$(port imap_starttls)" "POP3_STARTTLS_PORT=$(port pop3_starttls)" \
        "SUBMISSIONS_PORT=$(port submissions)" "DOVECOT_SUBMISSION_PORT=$(port dovecot_submission)" \
        "DOVECOT_SUBMISSIONS_PORT=$(port dovecot_submissions)"
}

# Each server must greet: Postfix its clients, Dovecot its clients and Postfix.
ready_mail() {
    local ca=$DIR/pki/ca.crt
    openssl s_client -brief -CAfile "$ca" -verify_return_error -connect "127.0.0.1:$(port imap)" </dev/null >/dev/null &&
        openssl s_client -brief -CAfile "$ca" -verify_return_error -connect "127.0.0.1:$(port pop3)" </dev/null >/dev/null &&
        openssl s_client -brief -CAfile "$ca" -verify_return_error -starttls smtp \
            -connect "127.0.0.1:$(port submission)" </dev/null >/dev/null
}

removed_mail() {
    [[ ! -f $DIR/run/mail.home ]] || rm -rf "$(<"$DIR/run/mail.home")" "$DIR/mail"
}
