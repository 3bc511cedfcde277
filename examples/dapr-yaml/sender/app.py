"""Publishes a greeting for each name, and ends."""

import json
import os
import urllib.request

URL = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0/publish/greetings/names"

for name in os.environ["NAMES"].split(","):
    body = json.dumps({"name": name, "greeting": os.environ["GREETING"]}).encode()
    urllib.request.urlopen(urllib.request.Request(URL, body, {"Content-Type": "application/json"})).close()
    print(f"Sent {name}", flush=True)
