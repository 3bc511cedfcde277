"""Adapters to what a Kubernetes cluster keeps, over its API server's HTTP interface."""
