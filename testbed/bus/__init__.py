"""Knows how messages and events travel between processes: sockets, keys, signs of life; knows no meaning of them.

Orders travel ROUTER/DEALER, events PUB/SUB, both under CURVE. A peer's identity is its key, not its connection: the
name of a node is the name under which the server knows its public key, and a new connection with the same key takes
over. Only this package (and the guard) speaks ZeroMQ.
"""

from testbed.bus.client import EventReader, NodeBus
from testbed.bus.server import ServerBus
from testbed.bus.wire import Envelope, Lost, curve_available, new_keypair, port_free

__all__ = ["Envelope", "EventReader", "Lost", "NodeBus", "ServerBus", "curve_available", "new_keypair", "port_free"]
