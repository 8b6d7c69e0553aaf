"""Inside of `stereo_memory.py`: nothing here is public."""
