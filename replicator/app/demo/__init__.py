"""`replicator demo`: three real sites on this machine do the whole job on real data, and are judged from outside.

Nothing here reaches into a node: the sites are processes, spoken to through their API, and the
judge uses coreutils and the standard library, not our own code.
"""
