"""Mail and other messages to people."""
