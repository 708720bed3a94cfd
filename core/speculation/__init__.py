"""Guessing tokens ahead so that one step can verify several; never a different answer."""
