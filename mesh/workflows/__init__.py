"""Workflows: durable code, run turn by turn by workers, whose history the mesh keeps (see docs/workflows.md).

::

    events, actions, messages, state    values: what happened, what a worker wants, what is told, what an instance is
    instance, decide, finishing, rerun  the rules: functions of values, without store, clock or chance
    retrying, outgoing
    record, committing, group_commit,
    reading                             how it is kept: one conditional write for a turn
    engine, partitions, memory          the instances of the partitions that this node owns
    running, batch, scheduler           one of them: what is written of it together, and what follows from that
    dues, delivery                      when to look again; what is for other instances
    dispatch, fair_queue, capacity      turns and activities on their way to workers: fairly, and within limits
    remote, peers                       activities on other nodes, and for them
    access, settings, observed          who else may use them; limits and retention; metrics and spans
    worker, stream, application,
    declared, json_turn, json_answer    workers: over a stream that they hold open, or over HTTP
"""
