"""Speaking with other sites: who they are, the encrypted link, streams over it, and the mesh of links."""
