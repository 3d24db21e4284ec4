"""What every process of slos-serve shares."""
