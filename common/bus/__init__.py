"""The queue between the processes."""
