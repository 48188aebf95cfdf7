mkdir getmail
cat >getmail/getmailrc <<END
[retriever]
type = SimplePOP3Retriever
server = localhost
port = $POP3_PORT
username = $MAILBOX
password = x

[destination]
type = MDA_external
path = /usr/bin/tee
arguments = ("-a", "$PWD/fetched")
allow_root_commands = true
END
send_mail
await_mail
getmail --getmaildir "$PWD/getmail" >/dev/null
grep "^Subject: $SUBJECT" fetched
