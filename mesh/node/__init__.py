"""A node of the mesh: built, started, drained, described."""
