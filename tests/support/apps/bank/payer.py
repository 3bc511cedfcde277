"""Calls the bank four times a second: its accounts, and its rates, of which one fails."""

import itertools
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request

GATEWAY = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0"
CURRENCIES = ("euro", "krone", "dukat", "franc")


def ask(verb: str, path: str, value: object = None) -> None:
    body = None if value is None else json.dumps(value).encode()
    request = urllib.request.Request(f"{GATEWAY}/{path}", body, {"Content-Type": "application/json"}, method=verb)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        print(f"{path}: {error.code}")
        error.close()
    except OSError as error:
        print(f"{path}: {error}")


for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, lambda *_: sys.exit(0))

for number, currency in zip(itertools.count(1), itertools.cycle(CURRENCIES)):
    ask("GET", f"invoke/bank/method/rates/{currency}")
    ask("PUT", f"actors/account/{number % 3}/method/deposit", number)
    ask("POST", "state/statestore", [{"key": f"paid-{number % 20}", "value": {"number": number, "currency": currency}}])
    time.sleep(0.25)
