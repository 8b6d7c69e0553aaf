"""Training of the compact backbone. Imports the library and is never imported by it."""
