"""Training of the mini generator. Imports the library and is never imported by it."""
