"""Trace context of the gateway's API, and what its spans are called."""
