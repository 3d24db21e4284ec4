"""Set-up, container images and the compose test."""
