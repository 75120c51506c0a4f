"""Sampling strategies: one file each."""
