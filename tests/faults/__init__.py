"""Real processes, real system calls, real damage: what a crash, a bad disk, a power cut or a full disk leaves behind.

The oracle is outside: a worker says what it was promised through a pipe-like file of the driver's, with SHA-256 sums of
its own; `judge` opens what is left, as a user would, and compares. `scripts/torture` runs the same for a night.
"""
