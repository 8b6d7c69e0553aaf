"""Inside of `mini.py`: nothing here is public."""
