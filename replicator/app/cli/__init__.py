"""The command line: one file a topic, each importing what it needs only when it runs."""
