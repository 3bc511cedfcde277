"""One gateway over several processes: ``mesh gateway --workers N``.

``parent.py`` is the process that was started. It opens the ports, starts the workers and replaces them, and answers
nothing by itself: each worker is a whole gateway on sockets of its own (``SO_REUSEPORT``), and the kernel divides the
clients. What is to be one for everybody else goes over a socket between each worker and the parent (``wire.py``).
"""
