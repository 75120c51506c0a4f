"""Metrics of leakage and utility. Host work, NumPy in float64."""
