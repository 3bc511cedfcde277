"""Middleware for HTTP, one type of component a module (`mesh/middleware.py` is what they implement)."""
