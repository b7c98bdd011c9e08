"""How people and programs reach a node: HTTP on a local socket for everything, on loopback for looking."""
