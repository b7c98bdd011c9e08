"""What everything rests on: errors, ports to the world outside, pacing, logging. Knows nothing of backup."""
