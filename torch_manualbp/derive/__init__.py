"""A training step without an autograd graph."""
