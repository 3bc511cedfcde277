"""Adapters to services of Azure; as whom they ask is the same for all of them."""
