cat >alertmanager.yml <<END
global:
  smtp_smarthost: localhost:$SMTP_PORT
  smtp_from: $MAILBOX
  smtp_auth_username: $MAILBOX
  smtp_auth_password: x
  smtp_require_tls: false
route:
  receiver: mail
  group_wait: 0s
receivers:
  - name: mail
    email_configs:
      - to: $MAILBOX
        headers: {Subject: '{{ .CommonAnnotations.summary }}'}
END
: >alertmanager.log
"$(tool_path alertmanager)" --config.file=alertmanager.yml --storage.path=data --web.listen-address=127.0.0.1:0 \
    --cluster.listen-address= >>alertmanager.log 2>&1 &
trap 'kill $!; wait; cat alertmanager.log >&2' EXIT
# Prints the address from the log.
address() { sed -n 's/.*msg="Listening on" address=//p' alertmanager.log; }
for try in {1..300}; do
    if [[ $(address) ]]; then break; fi
    sleep 0.1
done
curl -sSf --noproxy '*' -o /dev/null --json "[{\"labels\": {\"alertname\": \"Test\"}, \"annotations\": {\"summary\": \"$SUBJECT\"}}]" \
    "http://$(address)/api/v2/alerts"
await_mail
