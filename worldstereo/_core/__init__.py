"""Threads, compiled kernels, atomic writes, Morton order: what every package may use."""
