"""One file per format; `worldstereo.export` is the door."""
