"""Pays 50 times into one account, ten at a time: none is lost, without a lock or an etag."""

import json
import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor

ACCOUNT = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}/v1.0/actors/account/ann"


def call(method: str, value: int | None = None) -> int:
    body = None if value is None else json.dumps(value).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{ACCOUNT}/method/{method}", body, method="POST")) as answer:
        return int(answer.read() or 0)


before = call("balance")
with ThreadPoolExecutor(10) as pool:
    list(pool.map(lambda _: call("deposit", 1), range(50)))
print(f"The account has {call('balance') - before} more", flush=True)
call("save")  # Whatever becomes of this program, its interest comes.
