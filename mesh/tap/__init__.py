"""What passes a mesh, seen from outside: watched at each node, told to whoever asks, nothing while nobody does."""
