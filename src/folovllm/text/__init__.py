"""Prompts and text: chat templates, tokens in, text out."""
