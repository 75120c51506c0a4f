"""Membership inference: signals of each release, and calibrations over shadow models."""
