"""HTTP routes: one module per building block; each parses, calls its block and renders."""
