"""Wire formats: the only home of pydantic."""
