"""Metrics of a gateway: what an observer is told is counted here, and written for Prometheus when it asks."""
