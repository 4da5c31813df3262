"""Tiles read from lazy images, each chunk decoded once."""
