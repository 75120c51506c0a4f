"""One script a question; each a pure function of its config."""
