#!/usr/bin/env python3
"""Runs a program again and again that logs in once. Prints a line of JSON for each run, and for each new token in the mounted Secret.

Usage: again.py LIFETIME PERIOD COMMAND...    LIFETIME of a token and PERIOD between two runs, in seconds
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

SECRET = Path("/var/run/secrets/mail")
REFUSALS = ("SMTPAuthenticationError", "IMAP4.error", "authentication failed")  # Python's words, msmtp's and Postfix's


def key(name):
    """A key of the mounted Secret, or of the environment if no Secret is mounted."""
    return (SECRET / name).read_text() if SECRET.exists() else os.environ[name]


def report(**fields):
    print(json.dumps({"at": round(time.time(), 3)} | fields), flush=True)


def fingerprint(token):
    return hashlib.sha256(token.encode()).hexdigest()[:12]


def watch(lifetime):
    """Reports each new token, and the time from its issue until the pod has its file."""
    last = None
    while True:
        token, expires = key("access_token"), int(key("expires_at_unix"))
        if token != last:
            delay = None if last is None else round(time.time() - (expires - lifetime), 1)
            report(file=fingerprint(token), delay=delay)
            last = token
        time.sleep(0.2)


def run(command):
    start, token, expires = time.time(), key("access_token"), int(key("expires_at_unix"))
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    result, answer = "accepted", None
    if ended.returncode:
        answer = ended.stdout.strip().rpartition("\n")[2][:300]
        result = "refused" if any(word in ended.stdout for word in REFUSALS) else "broken"
    report(login=result, answer=answer, token=fingerprint(token), remaining=round(expires - start, 1),
           took=round(time.time() - start, 2))


def main(lifetime, period, command):
    threading.Thread(target=watch, args=(lifetime,), daemon=True).start()
    while True:
        due = time.monotonic() + period
        run(command)
        time.sleep(max(0, due - time.monotonic()))


if len(sys.argv) < 4:
    sys.exit(__doc__)
main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
