"""What is said: one frozen dataclass a message, one number each, for ever."""
