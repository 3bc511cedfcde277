"""What a tap saw, done again: read from a recording, made a request to a gateway, and compared with what came then.

Nothing here knows a client or a terminal: whoever replays gives what sends a request.
"""
