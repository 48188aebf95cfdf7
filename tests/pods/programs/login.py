#!/usr/bin/env python3
"""Logs in once: at SMTP in even seconds, at IMAP in odd seconds.

Usage: login.py token|password|service

token:    at the mail server with the mounted token, as docs/pods.md says
password: at the relay in the same pod with any password
service:  at the relay mail-relay of the namespace, with the name and the password in the environment
"""

import base64
import imaplib
import os
import smtplib
import ssl
import sys
import time
from pathlib import Path

SERVICE = "mail-relay.shop.svc"
TIMEOUT_SECONDS = 20


def key(name):
    return Path("/var/run/secrets/mail", name).read_text()


def smtp_token():
    with smtplib.SMTP(key("smtp_host"), int(key("smtp_port")), timeout=TIMEOUT_SECONDS) as client:
        client.starttls(context=ssl.create_default_context())
        client.ehlo()
        code, answer = client.docmd("AUTH", "XOAUTH2")
        if code == 334:
            code, answer = client.docmd(key("xoauth2"))
            if code == 334:
                code, answer = client.docmd("")
        if code != 235:
            raise smtplib.SMTPAuthenticationError(code, answer)


def imap_token():
    response = base64.b64decode(key("xoauth2"))
    with imaplib.IMAP4_SSL(key("imap_host"), int(key("imap_port")), timeout=TIMEOUT_SECONDS) as client:
        client.authenticate("XOAUTH2", lambda challenge: b"" if challenge else response)


def smtp_password():
    with smtplib.SMTP("localhost", 1587, timeout=TIMEOUT_SECONDS) as client:
        client.login(key("username"), "any")


def imap_password():
    with imaplib.IMAP4("localhost", 1143, timeout=TIMEOUT_SECONDS) as client:
        client.login(key("username"), "any")


def smtp_service():
    with smtplib.SMTP(SERVICE, 587, timeout=TIMEOUT_SECONDS) as client:
        client.starttls(context=ssl.create_default_context())
        client.login(os.environ["LOGIN"], os.environ["PASSWORD"])


def imap_service():
    with imaplib.IMAP4_SSL(SERVICE, 993, timeout=TIMEOUT_SECONDS) as client:
        client.login(os.environ["LOGIN"], os.environ["PASSWORD"])


LOGINS = {"token": (smtp_token, imap_token), "password": (smtp_password, imap_password),
          "service": (smtp_service, imap_service)}

if len(sys.argv) != 2 or sys.argv[1] not in LOGINS:
    sys.exit(__doc__)
LOGINS[sys.argv[1]][int(time.time()) % 2]()
