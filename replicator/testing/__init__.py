"""A mesh of real nodes in the memory of one process: no sockets, no disks, no threads.

What runs is the composition root that a process runs (`app/node.py`), on other ports. So a test
that backs up, replicates, corrupts and repairs here meets the product, and takes milliseconds.
`docs/testing.md` begins with an example.
"""

from replicator.testing.determinism import run_in_virtual_time
from replicator.testing.mesh import MemoryMesh
from replicator.testing.site import MemorySite

__all__ = ["MemoryMesh", "MemorySite", "run_in_virtual_time"]
