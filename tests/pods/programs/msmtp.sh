# shellcheck shell=sh
# Sends a mail with msmtp, configured as docs/relay/msmtp.md says: msmtp.sh MAILBOX
cat >/tmp/msmtprc <<END
account default
host localhost
port 1587
auth plain
user $1
password x
from $1
END
chmod 600 /tmp/msmtprc
printf 'To: %s\nSubject: test\n\nSent with a password.\n' "$1" | msmtp -C /tmp/msmtprc -t
