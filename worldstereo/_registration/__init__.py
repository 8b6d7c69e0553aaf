"""Inside of `registration.py`: nothing here is public."""
