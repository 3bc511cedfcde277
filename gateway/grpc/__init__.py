"""gRPC beside HTTP: the service ``dapr.proto.runtime.v1.Dapr`` for clients, and the way to applications that speak it.

What it needs is loaded when the first client connects (`gateway/grpc/listener.py`), or for an application that speaks
gRPC. The rows of RPCs stand beside the routes of their block, in `gateway/routes`.
"""
