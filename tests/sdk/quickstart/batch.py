"""An application in the shape of Dapr's quickstart of bindings: a clock triggers it, and it writes to a database.

``WAY`` is how it calls: by the SDK's client, or over HTTP.
"""

import json
import os
import urllib.request

from dapr.clients import DaprClient
from flask import Flask

app = Flask(__name__)
CLOCK, DATABASE = "cron", "sqldb"
ORDERS = [{"id": 1, "customer": "Ann", "price": 10.5}, {"id": 2, "customer": "Bob", "price": 20.25}]
left = [*ORDERS]


@app.route(f"/{CLOCK}", methods=["POST"])
def process_batch():
    while left:
        write(left[0])
        left.pop(0)
    return json.dumps({"success": True})


def write(order):
    sql = (
        f"insert into orders (orderid, customer, price) values ({order['id']}, '{order['customer']}', {order['price']})"
    )
    if os.environ["WAY"] == "sdk":
        with DaprClient() as client:
            client.invoke_binding(DATABASE, "exec", data="", binding_metadata={"sql": sql})
        return
    url = f"http://localhost:{os.environ['DAPR_HTTP_PORT']}/v1.0/bindings/{DATABASE}"
    body = json.dumps({"operation": "exec", "metadata": {"sql": sql}}).encode()
    with urllib.request.urlopen(url, body) as answer:  # Of another type than JSON, as clients of HTTP are used to.
        assert 200 <= answer.status < 300


app.run(host="127.0.0.1", port=int(os.environ["APP_PORT"]))
