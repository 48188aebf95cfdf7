cat >muttrc <<END
set smtp_url = "smtp://$MAILBOX@localhost:$SMTP_PORT/"
set smtp_pass = "x"
set imap_user = "$MAILBOX"
set imap_pass = "x"
set folder = "imap://localhost:$IMAP_PORT/"
set spoolfile = "+INBOX"
set from = "$MAILBOX"
set ssl_starttls = no
set ssl_force_tls = no
set copy = no
set header_cache = ""
END
echo Hello | mutt -F muttrc -s "$SUBJECT" -- "$MAILBOX"
await_mail
# Opens INBOX on a terminal, saves the mail to a file, and leaves.
cat >>muttrc <<END
set confirmappend = no
set confirmcreate = no
set copy_decode_weed = no
set mbox_type = mbox
push "<limit>~s $SUBJECT<enter><copy-message><kill-line>$PWD/saved<enter><exit>"
END
TERM=xterm timeout 60 script -qec 'mutt -F muttrc' /dev/null </dev/null >mutt.log 2>&1 || true
grep "^Subject: $SUBJECT" saved
