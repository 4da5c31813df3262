"""Tile geometry, features and where they are kept."""
