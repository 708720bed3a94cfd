"""The engine: models, paged KV cache, scheduling and text. Knows nothing of HTTP or terminals."""
