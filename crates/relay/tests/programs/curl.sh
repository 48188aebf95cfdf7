printf 'From: %s\r\nTo: %s\r\nSubject: %s\r\n\r\nHello\r\n' "$MAILBOX" "$MAILBOX" "$SUBJECT" >mail
curl -sS --noproxy '*' --url "smtp://localhost:$SMTP_PORT" --user "$MAILBOX:x" --mail-from "$MAILBOX" --mail-rcpt "$MAILBOX" --upload-file mail
await_mail
curl -sS --noproxy '*' --url "imap://localhost:$IMAP_PORT/INBOX" --user "$MAILBOX:x" --request "SEARCH SUBJECT $SUBJECT" | grep -E '^\* SEARCH [0-9]+'
curl -sS --noproxy '*' --url "pop3://localhost:$POP3_PORT/1" --user "$MAILBOX:x" | grep -i '^subject:'
