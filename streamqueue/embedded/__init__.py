"""A local one-node replica set from a real mongod, for trying and testing.

Not for production: it listens on the loopback interface without access control, with a small cache
and, unless it is given a folder, with data that is deleted when it stops.

The program starts a supervisor (``_supervisor.py``), and that starts mongod. mongod ends with the
program whatever ends it: the supervisor notices, and the kernel ends mongod if the supervisor is
killed (Linux). Only when both are killed at the same moment does a temporary folder stay behind.
"""

from .binary import find_mongod
from .server import EmbeddedServer

__all__ = ["EmbeddedServer", "find_mongod"]
