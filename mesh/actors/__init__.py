"""Virtual actors: objects of an application that are addressed by type and id, each at most once, one call at a time.

Who runs an actor is whoever owns the partition of its id (`mesh/ownership`). What stands here is that owner's side, and
needs no broker:

=================== ================================================================================================
``settings.py``      what the application says of its types
``host.py``          how the application's side is reached: `ActorHost`, and what a turn is
``turns.py``         one turn at a time, in order of arrival, with reentrancy
``activation.py``    an actor that is active, and when it has idled for long enough
``deactivating.py``  having the application let go of actors, in bounded time
``hosted.py``        a type with its active actors: takes partitions, hands them over, drops them
``state.py``         what actors keep, where the store refuses the writes of whoever has been replaced
``timers.py``        timers in memory, which end with the activation
``reminders.py``     reminders, which are durable timers (`mesh/timers`)
``errors.py``        what fails
=================== ================================================================================================

The building block is in ``mesh/blocks/actors.py``.
"""
