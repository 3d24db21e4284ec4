"""The HTTP ingress."""
