"""`pippin bench-serve`: how fast any OpenAI-compatible server is."""
