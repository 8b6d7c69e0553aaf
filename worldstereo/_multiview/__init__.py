"""Inside of `multiview.py`: nothing here is public."""
