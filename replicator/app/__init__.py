"""Putting a node together, and the command line. The only place that names concrete classes."""
