"""Work that takes time: kept durably, run, watched, and carried on after a crash."""
