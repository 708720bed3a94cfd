"""HTTP endpoints, one API a file."""
