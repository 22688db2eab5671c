"""Helpers without an opinion about inference."""
