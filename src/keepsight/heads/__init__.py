"""Heads: networks from read-out features to logits, and the solvers that fit them in closed form."""
