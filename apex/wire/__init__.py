"""Typed messages over ZeroMQ ROUTER/DEALER sockets. The only package that imports zmq.

`messages` defines the messages, `codec` converts them to frames and back, `sockets` creates
sockets with safe options, and `server` and `client` implement the conversation. PROTOCOL.md is
the specification.
"""
