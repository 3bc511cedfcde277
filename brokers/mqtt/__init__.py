"""MQTT as a pub/sub component: topics that devices use too, sessions that a group inherits from its members.

=============  ====================================================================================
ours           on MQTT 5
=============  ====================================================================================
topic          the topic of the same name, after a prefix; ``+`` and ``#`` are wildcards
publish        QoS 1, done with PUBACK; over a broken connection it is sent again by the next
group          ``$share/<group>/<filter>``: a message goes to one session of it, connected or not
member         a persistent session for each subscription, under a random client id
registry       retained messages ``mesh-sessions/<group and filter>/<client id>``: ``held`` by whom, or
               ``free``; the will says ``free``. A member that starts takes a free session as its own; one
               that is there connects as its client id, unsubscribes, handles the rest, and ends it
ack, reject    PUBACK, over the connection that brought the message; when that is gone, over the next,
               which brings it again (DUP)
nack           kept unacknowledged, and handled again by the same member
release        nothing: what is not acknowledged is whoever's that takes the session
ack_wait       none: a delivery is its member's until that leaves or dies (``Features.reassigns``)
max_in_flight  counted here; the receive maximum is 256 more, for what waits to be tried again
headers        user properties, by the CloudEvents binding
key, id        the properties ``/key`` and ``/id``; neither order nor deduplication
frames         none
=============  ====================================================================================

MQTT 3.1.1, and servers without shared subscriptions or retained messages: one session for a group, with a fixed
client id, so one member. 3.1.1 has no headers; events travel in structured mode.

Sources: OASIS, MQTT 5.0 (4.1.0 sessions, 4.4 redelivery, 4.8.2 shared subscriptions) and 3.1.1; CloudEvents, MQTT
protocol binding; mosquitto.conf(5). What Mosquitto 2.0 does beyond them, and what follows, is in docs/brokers/mqtt.md.
"""

from brokers.mqtt.broker import MQTTBroker, MQTTConfig

__all__ = ["MQTTBroker", "MQTTConfig"]
