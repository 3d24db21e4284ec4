"""Offline batches: files and batches in Redis, and the run that sends a batch's lines through the pipeline."""
