"""What a set of blocks adds up to, so that two sites can compare theirs in three round trips.

`tokens` turns ids into keyed numbers, `cells` keeps their sums while blocks come and go,
`view` is one frozen set as a session (`protocol.machines.reconcile`) wants to see it. Nothing
here is a source of truth: all of it can be made again from the ids, and a wrong sum costs a
question too many, never a block. That a snapshot is whole is proven by walking its manifest.
"""
