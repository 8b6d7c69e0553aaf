"""Open worlds, and the jobs that change them."""
