"""What gateways are given by the operator of a cluster, over the backbone: resources, secrets, certificates.

``source.py`` says what an operator implements, ``answering.py`` serves it, ``asking.py`` is a gateway's side, and
``wire.py`` what the two say to each other.
"""
