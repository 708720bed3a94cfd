"""Who owns which block of the paged KV cache, and what can be reused."""
