# shellcheck shell=sh
# Sends a mail with msmtp and the mounted token, configured as docs/pods.md says: msmtp-token.sh MAILBOX
{ cat /programs/msmtprc && echo 'tls_trust_file /ca/ca.crt'; } >/tmp/msmtprc
chmod 600 /tmp/msmtprc
printf 'To: %s\nSubject: test\n\nSent with a token.\n' "$1" | msmtp -C /tmp/msmtprc -t
