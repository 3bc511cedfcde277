"""Proven identity: nobody acts on the mesh under a name that is not theirs, with no certificate service.

A node holds an X.509 certificate whose one URI is its SPIFFE id, ``spiffe://<trust domain>/ns/<namespace>/<app id>``
(``certificates.py``). It comes from a root that lies in a folder (``folder.py``, ``mesh trust``) or in a secret store
(``secret.py``), from files that somebody else renews (``files.py``), or from a SPIFFE Workload API (``workload.py``).
While it has ended, its node takes no calls (``standing.py``). Between gateways is no connection, so what proves a name
stands in each frame.

*Credential*: the certificate chain, and a key for agreement (X25519) that lives as long as the process, signed by the
certificate's key. It is a header of some 700 bytes, sent with each request and with each frame of an answer but further
parts of a body: so nobody has to be asked for it, and nothing is lost with a connection. Who has checked one keeps it
(``credential.py``). From two credentials follows a secret of the two nodes, agreed on once.

================================== ==================================================================================
frame                              proven by
================================== ==================================================================================
a request                          a signature; to nodes that have answered before, a MAC by the secret of each of the
                                   last few. Who is not among them says ``prove``, and gets it again, signed
a reply, and all frames of streams a MAC by the secret of the two, which covers the digest of the request
a refusal, and ``prove``           a signature that covers that digest
what is told to all members        a signature
what is stored                     a signature, see ``kept.py``
================================== ==================================================================================

What is covered: all headers (verb, path, deadline, claims, the place of a part in its stream) and the body; of a
request also the address that it was sent to, when it was made, and the token that its answer goes to, which each has
its own of. Who acts on a request checks: the chain up to a trusted root, its time and its trust domain; the proof; that
it was made within two minutes and not before; that its deadline is to come; and that it did not come before, for as
long as it could come again. That memory is bounded (``replays.py``): beyond it what whoever sends most has on the way
is not taken. It begins with the process, so what is signed and may be older is asked for again, with the ids of the
credentials of those who asked: only what was made for this process has its id.

Who may answer: for an app id its own identity; for a component each identity of the namespace, or those that
``--trust-hosts`` names; for anything else each identity of the namespace. What is not proven so is as if it had not
come: it is counted, told in the log now and then, and the call waits on.

Where that is asked for, all but what is needed to read a frame is sealed (``sealing.py``): a request to those who have
answered before at its address, whatever else to the other end. Every node with a credential opens what is sealed, so
nothing is negotiated. Where nobody is known, a question goes first, which is proven to nobody: so it is answered by
``prove``, and that brings the credential. Who is sent what it cannot open says ``prove`` as well, and where it can be
sent it alone. Only who may answer is sealed to.

``permissive`` proves, and checks what is proven, but takes what is not as it was taken without identities; so a mesh
is changed node by node. ``strict`` refuses it. Without a mode none of this is loaded.
"""
