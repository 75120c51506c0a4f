"""Contestants of `experiments.speed`, and the referee that runs them in turn."""
