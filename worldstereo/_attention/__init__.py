"""Inside of `attention.py`: nothing here is public."""
