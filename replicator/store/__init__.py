"""Blocks at rest.

`segments` keeps the bytes, `ledger` knows where, `local` joins them behind the port in
`ports`, `replay` finds the truth again after a crash, `verify` reads it all once more, and
`collect` lets go of what nothing speaks for. `docs/storage.md` has the bytes.
"""
