"""What the adapters share: settings and TLS, back-off, handling of deliveries, limits."""
