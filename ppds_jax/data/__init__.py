"""Data sets: loading, checks, and batches inside compiled code."""
