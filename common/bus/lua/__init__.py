"""Scripts of the Redis bus; a package so that they are installed with it."""
