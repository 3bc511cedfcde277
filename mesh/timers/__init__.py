"""Durable timers: what fires later, whatever happens to a node until then. Reminders and jobs are such timers.

A timer belongs to a key of a kind, and so to a partition (``mesh/ownership``). All that is durable of it is one record
in the mesh's own store, ``timer.<kind>.<partition>.<key>.<name>``: when it is due, how it goes on, what its block keeps
with it (``record.py``).

The owner of the partition remembers of each record a *hint*: when to look at it, and its key, not two hundred bytes
(``hints.py``). The record alone says whether it is there and due. So a hint too many costs one read, and what an
overwrite or a delete leaves behind is found out when its time has come, or, where there is too much of it, by reading
the partition anew. While nothing is due, nothing is read or written.

Nothing is lost, because

- a put is acknowledged only when this node was still sure to be the owner once the store had answered, and whoever
  owns the partition next reads all of it after it took it over;
- the owner makes a hint once the store has answered, whatever the answer was, so that a reading of the partition that
  began before finds the record or is followed by the hint;
- each put goes with the partition's *fence* (``fence.py``), so that what a former owner writes, or what a caller has
  given up, neither replaces what was confirmed since nor brings back what was deleted;
- who leaves a partition waits for what is being written, and what a former owner wrote that arrives even later is known
  by its epoch;
- a hint is forgotten only for a record that is gone, or for one of this epoch that is due later, and so has another;
- a record is deleted or moved to its next due time only after its firing, and only as that firing found it: one that
  was overwritten meanwhile stays as it is.

A timer fires at least once for each due time that was not missed, never early by the owner's clock. It fires again
where an owner ended between the firing and the store's answer (``firing.py``).
"""

from __future__ import annotations

from mesh.timers.firing import Fire
from mesh.timers.keeping import Timers
from mesh.timers.record import FailurePolicy, Outcome, Timer, TimerExistsError, record_key

__all__ = [
    "FailurePolicy",
    "Fire",
    "Outcome",
    "Timer",
    "TimerExistsError",
    "Timers",
    "record_key",
]
