"""Configuration files shipped with pippin."""
