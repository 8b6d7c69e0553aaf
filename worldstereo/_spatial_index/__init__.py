"""Inside of `spatial_index.py`: nothing here is public."""
