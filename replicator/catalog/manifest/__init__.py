"""A snapshot's content: one ordered map, kept as blocks.

The map's nodes are cut where the *keys* say, so equal content has an equal root, whatever
order of edits led there; nodes that did not change are shared between snapshots, never
rewritten. Three shapes of map use the same code:

- `NUMBERS`: block number → block id. Images and devices.
- `NAMES`: path → entry. Trees.
- `PIECES`: piece index → block id and length. Large files inside trees, and streams.

`nodes` is the bytes, `editor` builds and changes maps, `walk` reads and compares them,
`entries` is what a tree says of one path.
"""
