"""The disk tier: blocks that left the memory, kept in files for later prompts and later starts."""
