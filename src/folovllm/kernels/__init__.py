"""Kernels written in Python, each beside a reference in plain torch."""
