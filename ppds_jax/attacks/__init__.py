"""Membership inference: signals of each release, calibrated over shadow models."""
