"""A simulator of engines at the level of iterations, around the product's own planner and batch former."""
