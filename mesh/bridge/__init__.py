"""A bridge joins the meshes of two clusters, each with a backbone of its own (ADR 73).

It is one process with a node on either backbone. Its app id on one side names the other (``mesh/clusters.py``)::

    node, cluster east                 bridge                    node, cluster west
      │ orders@west  ─▶ mesh.<ns>.bridge.west ─▶ INVOKE orders ─▶ │      ``carried.py``
      │ durable call ─▶ mesh-calls/@west      ─▶ mesh-calls/orders │      ``durable.py``
      │ outcome      ◀─ mesh:invocations      ◀─ mesh-calls/@east ◀│
      │ event        ─▶ pubsub/topic          ─▶ pubsub/topic ─▶   │      ``topics.py``

What goes from one side to the other stands in lists (``routes.py``). What is stored is acknowledged on its own side
once the other side has confirmed it, so a bridge keeps nothing: it may die at any time, and others share its work.
"""
