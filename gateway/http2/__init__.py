"""HTTP/2 without TLS from the start (h2c), or with it: what gRPC stands on. docs/adr/0031-http2.md."""
