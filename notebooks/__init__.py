"""Notebooks, with their outputs; `execute` runs them all."""
