"""What prefill and decode workers share: everything but their preference."""
