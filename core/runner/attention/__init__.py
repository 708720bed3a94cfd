"""Attention over the paged KV store: rows, which read it in place, and prefill chunks."""
