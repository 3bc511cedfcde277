"""Keys for cryptography that are in files, and what is done with keys in this process."""
