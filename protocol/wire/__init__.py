"""Bytes: hashing, the sealed block, frames, and the buffer they are parsed from."""
