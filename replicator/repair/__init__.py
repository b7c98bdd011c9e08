"""Finding damage and mending it: scrub, ask (ioGuardian), guardian, and the reader that heals as it reads."""
