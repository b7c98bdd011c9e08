"""State machines: bytes and messages in, events out, every state and transition in the open."""
