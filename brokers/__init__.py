"""Adapters to message brokers: one module each."""
