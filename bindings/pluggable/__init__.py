"""Pluggable components of Dapr's: programs of third parties that answer gRPC on a socket."""
