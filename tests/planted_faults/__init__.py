"""Faults that published code has had, planted, so that each check proves its worth."""
