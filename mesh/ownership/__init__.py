"""Who does what only one node may do at a time: owners of partitions, with no control plane.

What is owned has a *kind* (an actor type of a namespace, the jobs of an application) and a key; its *partition* is a
hash of the key. All of it is kept in the mesh's own store:

==================== ===============================================================================================
``session.<id>``     a node that is alive says so here every three seconds; without that it is over after ten, by the
                     store's clock (``session.py``)
``table.<kind>``     the sessions that host a kind, and of each partition the session that owns it, and its *epoch*,
                     which rises with each change of hands (``table.py``)
==================== ===============================================================================================

A table changes by compare-and-set alone, and only when something changes hands: a node that idles renews one record.

What is not many things of a kind but one is a kind of a single partition: turns of readers (``turns.py``), a schedule.

Nobody decides for others. From one table all nodes derive the same wanted owners, and each does its own part of the way
there (``owning.py``): whoever is wanted takes what nobody owns; whoever has what another is wanted for finishes what it
is at and hands it over; whoever finds its neighbour's session ended removes it.

A node acts as an owner only while its session is sure: two thirds of those ten seconds from when the last renewal was
*sent*, by a clock that does not jump. Others take what it had only once its session has ended in the store. So two own
at once only where one stood still between looking at the clock and acting; what must hold even then carries the epoch,
or a condition on a record of its own, and the store refuses it.
"""
