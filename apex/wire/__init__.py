"""The wire: typed messages over ZeroMQ ROUTER/DEALER. The only package that imports zmq.

`messages` says what there is to say, `codec` turns it into frames and back, `sockets` makes
sockets safe, `server` and `client` keep the conversation. PROTOCOL.md describes it for people.
"""
