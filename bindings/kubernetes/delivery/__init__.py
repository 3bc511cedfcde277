"""What is put into a cluster, and how: the objects, their chart, and what the command line asks of them."""
