cat >fetchmailrc <<END
poll localhost
    protocol POP3
    port $POP3_PORT
    user "$MAILBOX"
    password "x"
    sslproto ""
    keep
    mda "cat >>$PWD/fetched"
END
chmod 600 fetchmailrc
send_mail
await_mail
HOME=$PWD fetchmail -f fetchmailrc --all --nosyslog
grep "^Subject: $SUBJECT" fetched
sed -i -e 's/POP3/IMAP/' -e "s/port .*/port $IMAP_PORT/" fetchmailrc
rm fetched
HOME=$PWD fetchmail -f fetchmailrc --all --nosyslog
grep "^Subject: $SUBJECT" fetched
