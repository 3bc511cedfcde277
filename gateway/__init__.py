"""How the outside talks to the mesh: HTTP routes, the application client, the command line."""
