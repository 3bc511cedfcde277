"""The building blocks, each written against the broker contract alone."""
