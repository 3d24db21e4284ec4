"""The worker that generates tokens."""
