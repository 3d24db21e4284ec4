"""Logs, metrics and traces; each module stands alone."""
