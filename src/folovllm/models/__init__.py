"""Hugging Face models over the paged KV cache."""
