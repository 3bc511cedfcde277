"""What sends finished spans to where they are kept and shown."""
