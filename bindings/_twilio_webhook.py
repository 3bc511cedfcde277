"""Short messages that arrive at Twilio: its webhook, as events.

Source: Twilio's pages on webhooks for incoming messages, and on their security.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import parse_qsl

import orjson

from bindings._listener import Answer, Listener, Place, Posted, metadata_of
from bindings._signatures import SIGNATURES, Signed
from mesh.blocks.binding_contract import BindingEvent

__all__ = ["sms_listener"]

_NOTHING = Answer(200, b'<?xml version="1.0" encoding="UTF-8"?><Response/>', "text/xml")


def sms_listener(place: Place, url: str, token: str) -> Listener:
    """Make what Twilio posts messages to; their fields come as one JSON object, and nothing is sent back.

    Args:
        place: Where it listens.
        url: The one that Twilio knows, which is a part of what it signs.
        token: The account's, which it signs with.
    """
    verify, fields = SIGNATURES["twilio"]

    def look(posted: Posted) -> BindingEvent | Answer:
        whole = url + (f"?{posted.query}" if posted.query and "?" not in url else "")
        if not verify(Signed(posted.headers, posted.body, time.time(), whole), token):
            return Answer(401, b"not signed by who may post\n")
        try:
            said = dict(parse_qsl(posted.body.decode(), keep_blank_values=True, max_num_fields=1000))
        except ValueError:
            return Answer(400, b"no form\n")
        return BindingEvent(orjson.dumps(said), metadata_of(posted, *fields))

    def render(answers: Sequence[bytes]) -> Answer:
        return _NOTHING

    return Listener(place, look, render)
