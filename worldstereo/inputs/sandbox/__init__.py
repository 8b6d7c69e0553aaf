"""The import process: foreign files are parsed there and come back as arrays."""
