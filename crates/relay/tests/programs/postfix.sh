# A smarthost client of its own: it queues while the token has expired, and delivers each mail once afterwards.
mkdir -p etc queue/pid data
cat >etc/main.cf <<END
compatibility_level = 3.6
queue_directory = $PWD/queue
data_directory = $PWD/data
myhostname = client.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [localhost]:$SMTP_PORT
smtp_host_lookup = native
smtp_sasl_auth_enable = yes
smtp_sasl_password_maps = inline:{ { [localhost]:$SMTP_PORT = $MAILBOX:x } }
smtp_sasl_security_options =
smtp_sasl_mechanism_filter = plain, login
smtp_tls_security_level = none
maillog_file = /dev/stdout
maillog_file_prefixes = /dev
END
cat >etc/master.cf <<END
pickup    unix n - n 60   1 pickup
cleanup   unix n - n -    0 cleanup
qmgr      unix n - n 300  1 qmgr
rewrite   unix - - n -    - trivial-rewrite
bounce    unix - - n -    0 bounce
defer     unix - - n -    0 bounce
trace     unix - - n -    0 bounce
smtp      unix - - n -    - smtp
retry     unix - - n -    - error
error     unix - - n -    - error
proxymap  unix - - n -    - proxymap
scache    unix - - n -    1 scache
postlog   unix-dgram n - n - 1 postlogd
END
chown -R postfix data
chmod 755 . etc
expires=$(cat "$SECRET/expires_at_unix")
trap 'printf %s "$expires" >"$SECRET/expires_at_unix"; postfix -c "$PWD/etc" stop >/dev/null 2>&1 || true' EXIT
printf 1 >"$SECRET/expires_at_unix"
postfix -c "$PWD/etc" start-fg >postfix.log 2>&1 &
# The number of mails that have a line with this text in Postfix's log.
mails() { sed -n "s/.*postfix.*: \([0-9A-F]*\): .*$1.*/\1/p" postfix.log | sort -u | wc -l; }
# Waits until a line is in Postfix's log; with a number, until so many mails have such a line.
await_log() {
    local try
    for try in {1..300}; do
        if [[ ${2-} ]] && (($(mails "$1") == $2)); then return; fi
        if [[ ! ${2-} ]] && grep -q "$1" postfix.log; then return; fi
        sleep 0.1
    done
    echo "not ${2-one} with $1 after $try attempts" >&2
    cat postfix.log >&2
    return 1
}
await_log 'daemon started'
for number in 1 2 3; do
    printf 'From: %s\nTo: %s\nSubject: %s\nX-Number: %s\n\nHello\n' "$MAILBOX" "$MAILBOX" "$SUBJECT" "$number" |
        sendmail -C "$PWD/etc" -f "$MAILBOX" "$MAILBOX"
done
await_log 'status=deferred.*454 4\.7\.0' 3
if grep -rqs "^Subject: $SUBJECT" "$MAIL"; then echo 'a mail was sent with an expired token' >&2; exit 1; fi
printf %s "$expires" >"$SECRET/expires_at_unix"
for try in {1..120}; do
    postqueue -c "$PWD/etc" -f
    if (($(mails status=sent) == 3)); then break; fi
    sleep 0.5
done
await_log status=sent 3
await_log removed 3
postqueue -c "$PWD/etc" -p | grep '^Mail queue is empty'
if grep status=bounced postfix.log; then echo 'a mail was returned to its sender' >&2; exit 1; fi
await_mail
for number in 1 2 3; do
    arrived=$(grep -rls "^Subject: $SUBJECT" "$MAIL" | xargs grep -l "^X-Number: $number" | wc -l)
    if ((arrived != 1)); then echo "mail $number has arrived $arrived times" >&2; exit 1; fi
done
