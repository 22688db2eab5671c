"""FoloVLLM: LLM inference that follows vLLM, in a codebase one person can read."""

__version__ = "0.1.0"
