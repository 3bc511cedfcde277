"""Workflows: durable code, run turn by turn by workers, whose history the mesh keeps (see docs/workflows.md).

A map of all modules, from the top: each imports only what stands below it. Parts with a bar stand side by side, and
none of them imports another. docs/how-it-works.md follows a turn through them.

::

    gateway/routes  the APIs, and the protocol of workers that hold a stream open
      workflow_views        what the command line shows, and asks for beyond the reference's API
      workflow_events       events of a history, as people and scripts are shown them
      workflow_hub          the protocol's calls of clients
      workflows             the HTTP API, as the reference has it
      workflow_stream       the protocol's stream of a worker, and the calls by which it answers
      workflow_wire         work as messages of the protocol
      workflow_answers      answers, read from messages of the protocol

    mesh/blocks  the building block
      workflow_block        its row in the table of blocks
      workflow_service      its operations: owners are asked, the store is read, workers are attached
      workflow_answers      answers of an owner to whoever may ask
      workflow_host         what is at work on a node that hosts: engine, store, dispatch
      workflow_questions    questions to owners and their answers, as they travel
      workflow_operations   operations of the mesh as activities
      workflows             operations of the block, and their arguments

    | engine  the instances of the partitions that this node owns
      engine                for who asks, and for who hands out work
      partitions            a partition is taken, left or lost
      processor             an instance is read, written, put away, purged: one task for each while it has work
      batch                 the steps that go in one write
      scheduler             what follows from a write: turns, activities, times
      delivery              messages to other instances
      memory                the instances in memory, within bounds
      entry                 an instance in memory, with what waits, is out, or is in no write yet
      mailbox               messages, calls, results and watchers of an instance
      coalescing            results of many activities share a turn
      dues                  the time of each instance that has something to do later

    | dispatch  work on its way to workers, fairly and within limits
      dispatch              to workers of this node, also for other nodes
      forwarding            activities to other nodes
      handout               tasks and timers of both
      capacity              workers that are attached, and limits
      fair_queue            names take turns, and instances of a name

    | store  one conditional write for a turn
      committing            instances are written, by the owner of their partition
      group_commit          writes that wait at the same time go out together
      reading               instances are read, at any node
      record                what a record has, and what lies beside it

    | workers  what runs the code
      remote                nodes that run activities for each other
      stream                a worker that holds a stream open
      application           the application as a worker over HTTP
      declared              what it says of its workflows
      json_answer           its answers
      json_turn             turns for it

    rules  functions of values, without store, clock or chance
      rerun                 an instance is run again, from one of its events
      turns                 turns begin, and end
      decide                messages are accepted, activities and timers resolved
      retrying              activities are tried again
      outgoing              the outbox, and what others are told of an end
      propagation           what of a history goes along with activities and children
      waiting               what an instance waits for, as people are told
      instance              an instance: its state and history, and what follows from them

    contracts  what the parts are to each other
      contracts             engine, store, dispatch, other instances
      observed              metrics and spans
      peers                 nodes that run activities
      worker                a worker, and the work it is given

    values
      settings              limits and retention
      state                 what an instance is
      messages              what an instance is told
      actions               what code asks for
      events                what has happened
      errors
      operations            names and arguments of operations of the mesh
      access                who else may use workflows
"""
