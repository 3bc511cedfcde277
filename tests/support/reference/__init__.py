"""Stand-ins of the reference runtime's sidecar, each by what was seen of it on a broker."""
