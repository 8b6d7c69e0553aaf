"""Inside of `geometric_memory.py`: nothing here is public."""
