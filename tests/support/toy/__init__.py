"""A building block of three files, to prove that no more are needed: its module, its routes, its tests."""
