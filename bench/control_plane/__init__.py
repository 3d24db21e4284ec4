"""How much the control plane carries: api, Redis and planner as real processes, engines simulated."""
