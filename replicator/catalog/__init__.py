"""What the node remembers: volumes, snapshots, promises, peers, and what a snapshot contains."""
