# What the scripts of the programs share. They run in an empty folder with MAILBOX, SUBJECT, SMTP_PORT, IMAP_PORT and POP3_PORT, the
# ports of a relay on loopback. MAIL is the folder in which the mail server keeps the mail of the mailbox.
set -euo pipefail
FUNCTIONS=$(realpath "${BASH_SOURCE[0]}")
. "${FUNCTIONS%/*}/../../../../tools/lib.sh"
PROGRAMS=$(programs_dir)
export FUNCTIONS NODE_PATH=$PROGRAMS/node_modules PATH=$(oidc_provider_dir):$PATH

# Waits until a mail with the subject has arrived.
await_mail() {
    local try
    for try in {1..300}; do
        if grep -rqs "^Subject: $SUBJECT" "$MAIL"; then return; fi
        sleep 0.1
    done
    echo "no mail with the subject $SUBJECT has arrived after $try attempts" >&2
    return 1
}

# Sends a mail, for programs that only read.
send_mail() {
    swaks --server "localhost:$SMTP_PORT" --auth PLAIN --auth-user "$MAILBOX" --auth-password x --from "$MAILBOX" \
        --to "$MAILBOX" --header "Subject: $SUBJECT" >/dev/null
}
