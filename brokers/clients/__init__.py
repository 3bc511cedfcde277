"""Clients of services that brokers and bindings have in common: as whom they ask, and how."""
