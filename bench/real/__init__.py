"""Runs on real engines: the product and stock vLLM servers, the same model, requests and cores, client included."""
