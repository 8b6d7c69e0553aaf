"""Inside of `render.py`: nothing here is public."""
