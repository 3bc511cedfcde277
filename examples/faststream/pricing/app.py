"""Prices orders: a FastStream application on the mesh, without a gateway."""

import asyncio
import os

from faststream import FastStream
from faststream.nats import NatsBroker
from pydantic import BaseModel

from brokers.faststream import Mesh

PRICES = {"teapot": 25.0, "piano": 4000.0, "spoon": 2.0}
SERVER = os.environ.get("MESH_BACKBONE", "nats://127.0.0.1:4222")


class Order(BaseModel):
    orderId: int
    item: str


class Priced(Order):
    total: float


broker = NatsBroker(SERVER, logger=None)
mesh = Mesh(broker, app_id="pricing", backbone=SERVER)
app = FastStream(broker, logger=None, lifespan=mesh.lifespan)


@mesh.subscriber("orders", dead_letter="rejected-orders")
@mesh.publisher("priced", type="order.priced")
async def price_order(order: Order) -> Priced:
    """Ask the shop how many there are, and publish what they cost."""
    stock = await mesh.invoke("shop", "stock", {"item": order.item})
    priced = Priced(**order.model_dump(), total=PRICES[order.item] * stock.json()["pack"])
    print(f"Order {order.orderId}: {order.item} costs {priced.total:g}", flush=True)
    return priced


@mesh.method("price")
async def price(order: Order) -> dict[str, float]:
    """Answer what one costs."""
    return {"price": PRICES[order.item]}


if __name__ == "__main__":
    asyncio.run(app.run())
