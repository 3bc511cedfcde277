"""Adapters to services of Google Cloud; how they connect is the same for all of them."""
