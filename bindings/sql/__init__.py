"""Components on SQL databases: one state store with a value for each database's dialect, and a configuration store."""
