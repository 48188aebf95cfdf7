# Waits in INBOX for the mail, which arrives during IDLE, and fetches it.
cat >read.js <<'END'
const { execFileSync } = require('node:child_process');
const { on } = require('node:events');
const { ImapFlow } = require('imapflow');
const { MAILBOX, SUBJECT, IMAP_PORT } = process.env;

async function main() {
  const client = new ImapFlow({
    host: 'localhost',
    port: Number(IMAP_PORT),
    secure: false,
    auth: { user: MAILBOX, pass: 'x' },
    logger: false,
  });
  await client.connect();
  if (!client.capabilities.has('IDLE')) throw new Error('no IDLE among the capabilities');
  await client.mailboxOpen('INBOX');
  const arrivals = on(client, 'exists');
  client.idle();
  execFileSync('bash', ['-c', '. "$0"; send_mail', process.env.FUNCTIONS]);
  let found = [];
  for await (const arrival of arrivals) {
    found = await client.search({ subject: SUBJECT });
    if (found.length > 0) break;
    client.idle();
  }
  const { source } = await client.fetchOne(found[0], { source: true });
  process.stdout.write(source);
  await client.logout();
}

main();
END
node read.js >fetched
grep "^Subject: $SUBJECT" fetched
