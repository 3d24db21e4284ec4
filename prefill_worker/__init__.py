"""The worker that computes prompts."""
