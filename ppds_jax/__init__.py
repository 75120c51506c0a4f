"""Privacy-preserving image synthesis in JAX: generate, sample, classify, attack."""

__version__ = "0.1.0"
