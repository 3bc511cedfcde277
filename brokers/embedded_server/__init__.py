"""One nats-server for all gateways of this user: who starts it, keeps it running, and stops it.

Every gateway calls `join`. The first one starts a *supervisor* (``python -m brokers.embedded_server
supervise ...``, detached), which starts nats-server and stops it when the last gateway has gone. Nothing
counts users: the kernel does, by locks that it releases however a process ends. Under MESH_HOME/backbone:

=============  ====================================================================================
start.lock     exclusive: whoever looks at, starts or stops the server. A starting joiner hands its
               descriptor to the supervisor, so its own death in between lets nobody start a second
users.lock     shared by every joiner for as long as it is in; the supervisor waits for it exclusively
store.lock     exclusive: the supervisor, inherited by nats-server. Two servers on one store would
               destroy it, and a container or a host that shares the directory sees no foreign pids
server.json    who runs, on which port, by which token; left behind by a crash or a failed start
nats.conf      what nats-server runs by; holds the token, as server.json does (both 0600)
server.log     of nats-server and supervisor
data/          the JetStream store; never removed here
=============  ====================================================================================

Order of locks: start.lock before users.lock before store.lock. The supervisor waits for users.lock with
nothing else held, lets it go, and takes both in that order to decide that it is really over.

What dies, and what follows:

* a gateway, in any way: its hold on users.lock is gone with it.
* nats-server: the supervisor restarts it on the same port, at first at once, then with back-off.
* the supervisor: on Linux the kernel ends nats-server with it (PR_SET_PDEATHSIG, set by a small Python that
  then becomes nats-server, for ``preexec_fn`` is unsafe beside threads). Each joiner watches the supervisor,
  and the first to notice starts another with the old port and token, so that clients reconnect. Elsewhere
  nats-server lives on as an orphan until then, and is ended, for a store can have one server only.
* the machine: at most the last 10 s of messages that were acknowledged, or none if MESH_DURABILITY is ``strict``
  (every message is synced before its acknowledgement). A mere ``kill -9`` of anything loses nothing in either.

``files.py`` is what the two share, ``joiner.py`` and ``supervisor.py`` are the ends of this one protocol.
Only the standard library is imported, since its import time is part of every cold start.

Sources: flock(2), prctl(2); https://docs.nats.io/running-a-nats-service/configuration.
"""

from __future__ import annotations

from brokers.embedded_server.files import Durability, ServerAddress, durability_of, read_status
from brokers.embedded_server.joiner import join

__all__ = ["Durability", "ServerAddress", "durability_of", "join", "read_status"]
