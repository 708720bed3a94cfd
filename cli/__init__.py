"""The pippin command line."""
