cat >send.js <<'END'
const { MAILBOX, SUBJECT, SMTP_PORT } = process.env;
const transport = require('nodemailer').createTransport({
  host: 'localhost',
  port: Number(SMTP_PORT),
  secure: false,
  auth: { user: MAILBOX, pass: 'x' },
});
transport.sendMail({ from: MAILBOX, to: MAILBOX, subject: SUBJECT, text: 'Hello' });
END
node send.js
