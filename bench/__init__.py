"""Measures the gateway, next to the same work without brokermesh, in the same run: ``python -m bench``."""
