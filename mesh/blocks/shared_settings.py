"""What blocks read of every component of theirs, whatever its adapter; they read it themselves, this declares it."""

from __future__ import annotations

from mesh.resources.settings import BOOLEAN, Setting, whole

__all__ = ["LOCK", "STATE"]

_KEY_PREFIX = Setting(
    "keyPrefix",
    "What stands before every key: `appid`, `name` (of the component), `namespace`, `none`, or another text.",
    default="appid",
)
LOCK = (_KEY_PREFIX,)
STATE = (
    _KEY_PREFIX,
    Setting(
        "actorStateStore",
        "Whether the mesh's own records may be kept here, where the backbone has no store.",
        BOOLEAN,
        default=False,
    ),
    Setting(
        "ttlInSeconds",
        "When a value expires whose save says nothing of it; never, if not set, 0 or -1.",
        whole(-1),
        example="3600",
    ),
    Setting("primaryEncryptionKey", "Encrypts every value: 16, 24 or 32 bytes in hexadecimal.", secret=True),
    Setting("secondaryEncryptionKey", "An earlier key, for what it has encrypted.", secret=True),
    Setting(
        "outboxPublishPubsub", "The pub/sub component on which the transactional outbox publishes.", example="pubsub"
    ),
    Setting("outboxPublishTopic", "The topic that what a transaction writes is published to.", example="orders"),
    Setting(
        "outboxPubsub", "The pub/sub component of the internal topic; if not set, that of the events.", example="pubsub"
    ),
    Setting(
        "outboxDiscardWhenMissingState",
        "Read for compatibility: an event whose transaction cannot happen any more is always dropped.",
        BOOLEAN,
        default=False,
    ),
)
