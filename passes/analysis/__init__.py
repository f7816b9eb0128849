"""Passes that look and do not touch."""
