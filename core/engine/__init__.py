"""Scheduling and the engine thread."""
