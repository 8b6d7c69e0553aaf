"""Inside of `synthesis.py`: nothing here is public."""
