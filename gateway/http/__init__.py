"""HTTP: the server for the outside, and the client towards applications."""
