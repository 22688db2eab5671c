"""GGUF files, in which llama.cpp keeps a model: what they hold is honoured, or they are refused."""
