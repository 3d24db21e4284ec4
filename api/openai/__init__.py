"""OpenAI-compatible routes: the official client and benchmark tools run against them unchanged."""
