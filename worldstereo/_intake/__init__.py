"""Inside of `intake.py`: nothing here is public."""
