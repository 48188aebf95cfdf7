# Sends a mail with each form of AUTH that swaks has.
for mechanism in PLAIN LOGIN; do
    swaks --server "localhost:$SMTP_PORT" --auth "$mechanism" --auth-user "$MAILBOX" --auth-password x \
        --from "$MAILBOX" --to "$MAILBOX" --header "Subject: $SUBJECT" --pipeline >swaks.log || { cat swaks.log; exit 1; }
done
