"""The program of docs/pods.md, but with the token of an environment variable."""

import os
import smtplib
import ssl

with smtplib.SMTP(os.environ["smtp_host"], int(os.environ["smtp_port"]), timeout=30) as client:
    client.starttls(context=ssl.create_default_context())
    client.ehlo()
    code, answer = client.docmd("AUTH", "XOAUTH2")
    if code == 334:
        code, answer = client.docmd(os.environ["xoauth2"])
        if code == 334:
            code, answer = client.docmd("")
    if code != 235:
        raise smtplib.SMTPAuthenticationError(code, answer)
