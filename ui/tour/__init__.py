"""Recorded walkthroughs: a script of steps, driven in a real browser and written as a film."""
