"""Counts its starts in the state store; by the etag, two that start at once are both counted."""

import json
import os
import urllib.error
import urllib.request

STORE = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}/v1.0/state/statestore"


def read() -> tuple[int, str | None]:
    with urllib.request.urlopen(f"{STORE}/starts") as answer:
        body = answer.read()
        return (json.loads(body) if body else 0), answer.headers["ETag"]


def write(starts: int, etag: str | None) -> bool:
    # Without an etag, first-write means that the key must not be there yet.
    item = {"key": "starts", "value": starts, "options": {"concurrency": "first-write"}}
    body = json.dumps([item | ({"etag": etag} if etag else {})]).encode()
    try:
        urllib.request.urlopen(urllib.request.Request(STORE, body, {"Content-Type": "application/json"})).close()
    except urllib.error.HTTPError as error:
        if error.code == 409:
            return False
        raise
    return True


while True:
    before, tag = read()
    if write(before + 1, tag):
        break
print(f"Start number {before + 1}", flush=True)
