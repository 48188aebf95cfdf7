cat >msmtprc <<END
account default
host localhost
port $SMTP_PORT
auth plain
user $MAILBOX
password x
from $MAILBOX
END
chmod 600 msmtprc
printf 'To: %s\nSubject: %s\n\nHello\n' "$MAILBOX" "$SUBJECT" | msmtp -C msmtprc -t
