cat >mbsyncrc <<END
IMAPAccount relay
Host localhost
Port $IMAP_PORT
User $MAILBOX
Pass x
SSLType None
AuthMechs LOGIN

IMAPStore remote
Account relay

MaildirStore local
Path $PWD/
Inbox $PWD/inbox
SubFolders Verbatim

Channel mail
Far :remote:
Near :local:
Create Near
Sync Pull
SyncState *
END
send_mail
await_mail
mbsync -c mbsyncrc mail
grep -rl "^Subject: $SUBJECT" inbox
