# shellcheck shell=sh
# Starts Postfix as docs/relay/postfix.md configures it, then runs a command: postfix.sh COMMAND...
set -e
export PATH="/usr/sbin:$PATH"
cat - /programs/main.cf >/etc/postfix/main.cf <<END
compatibility_level = 3.6
maillog_file = /var/log/mail.log
inet_interfaces = loopback-only
mydestination =
END
postconf -F '*/*/chroot=n'
: >/var/log/mail.log
postfix start >/dev/null || { cat /var/log/mail.log; exit 1; }
exec "$@"
