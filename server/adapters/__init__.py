"""Wire formats to prompts and sampling params, outputs back to wire formats."""
