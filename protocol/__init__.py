"""What two sites say to each other, and the bytes they keep.

This package is sans-IO: bytes come in, events go out, `now` is an argument. It opens no
socket, reads no clock and no disk, starts no task and writes no log line, so everything in
it can be tested by calling it. `replicator` does the moving; this package decides.
"""
