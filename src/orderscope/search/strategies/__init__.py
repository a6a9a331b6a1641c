"""Strategies that yield candidate orders, one module each."""
