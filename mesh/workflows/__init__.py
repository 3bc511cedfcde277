"""Workflows: durable code, run turn by turn by workers, whose history the mesh keeps (see docs/workflows.md).

::

    events, actions, messages, state    values: what happened, what a worker wants, what is told, what an instance is
    instance, decide, finishing, rerun  the rules: functions of values, without store, clock or chance
    record, committing, grouping,
    reading                             how it is kept: one conditional write for a turn
    engine, keeping, dues, outbox       the instances of the partitions that this node owns
    dispatch, worker, remote            turns and activities on their way to workers, here or elsewhere
    stream, application, json_form      workers: over a stream that they hold open, or over HTTP
"""
