"""Request and reply over any broker: frames, one end of a stream, calls."""
