"""Topics as they stand on the brokers that people already run: one module per broker, small, on its own asyncio client.

Names and bytes are those of Dapr's components, so that programs which never heard of the mesh share the topics, and
Dapr's sidecars share groups. What `mesh/delivery.py` promises holds: nothing is settled before the application has
settled it, a retry is delayed, and what cannot be handled goes to the dead letter topic.
"""
