"""The 3D viewport (viser)."""
