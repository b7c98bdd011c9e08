"""Keeps the data of several sites alive.

A block's way through the folders: `ingest` cuts and seals it, `store` keeps it, `index`
summarises it, `sync` sends it, `repair` heals it, `restore` gives it back. They rest on
`core`, speak through `net`, are remembered in `catalog`, run by `jobs`, watched by
`monitor`, reached through `api`, and put together in `app`.
"""

__version__ = "0.1.0"
