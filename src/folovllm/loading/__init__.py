"""From a model's name to its weights and its tokenizer."""
