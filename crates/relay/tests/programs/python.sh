python3 - <<'END'
import imaplib, os, poplib, smtplib

mailbox, subject = os.environ["MAILBOX"], os.environ["SUBJECT"]
with smtplib.SMTP("localhost", int(os.environ["SMTP_PORT"])) as smtp:
    smtp.login(mailbox, "x")
    smtp.sendmail(mailbox, [mailbox], f"From: {mailbox}\r\nTo: {mailbox}\r\nSubject: {subject}\r\n\r\nHello\r\n")
for authenticate in (False, True):
    imap = imaplib.IMAP4("localhost", int(os.environ["IMAP_PORT"]))
    if authenticate:
        imap.authenticate("PLAIN", lambda _: f"\0{mailbox}\0x".encode())
    else:
        imap.login(mailbox, "x")
    # The relay has learned from the first login what the server offers.
    assert not authenticate or "IDLE" in imap.capabilities, imap.capabilities
    imap.select("INBOX", readonly=True)
    imap.logout()
pop3 = poplib.POP3("localhost", int(os.environ["POP3_PORT"]))
pop3.user(mailbox)
pop3.pass_("x")
pop3.stat()
pop3.quit()
END
