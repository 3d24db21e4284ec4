"""Celery tasks: thin shells around async functions that are tested without Celery."""
