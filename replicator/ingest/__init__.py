"""What cuts a source into blocks and seals them: the first stage on the data's way.

`pipeline.take` is the one way in. It reads a source, puts what the store lacks into it, and
answers with a root; publishing that root is the caller's business.
"""
