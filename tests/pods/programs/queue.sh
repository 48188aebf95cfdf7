# shellcheck shell=sh
# Gives Postfix a mail and waits until Postfix has delivered or deferred it: queue.sh MAILBOX
log=/var/log/mail.log
before=$(grep -c ' status=' $log)
printf 'To: %s\nSubject: test\n\nQueued.\n' "$1" | sendmail -f "$1" "$1" || exit
tries=600 # a minute
until [ "$(grep -c ' status=' $log)" -gt "$before" ]; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo 'Postfix neither delivered nor deferred the mail within a minute'; exit 1; }
    sleep 0.1
done
result=$(grep ' status=' $log | tail -n 1)
case $result in
    *' status=sent '*) exit 0 ;;
esac
postsuper -d ALL >/dev/null 2>&1
echo "${result#* status=}"
exit 1
