"""Adapters to services of AWS; how they connect is the same for all of them."""
