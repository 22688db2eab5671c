"""From requests to outputs, step by step."""
