"""Finding, fetching and loading models."""
