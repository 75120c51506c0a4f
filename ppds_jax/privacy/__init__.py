"""Guarantees, accounting and the private mechanisms. Host work in float64."""
