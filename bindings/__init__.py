"""Adapters to outside systems: one module or package per system."""
