"""Inside of `fusion.py`: nothing here is public."""
