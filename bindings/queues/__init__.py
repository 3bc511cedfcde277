"""Message brokers outside of the mesh as bindings: what comes in and goes out as it is, without CloudEvents."""
