"""Runs the model on the batch that was scheduled."""
