"""Seen from outside: status, metrics, alerts. Reads what the work counts; the work knows nothing of it."""
