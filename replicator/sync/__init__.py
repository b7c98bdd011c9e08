"""Replication: the sender offers a snapshot, the receiver fetches what it lacks and signs for it."""
