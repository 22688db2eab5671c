"""Where the M0 contract has the loader; it stands in `folovllm.loading.loader`."""

from folovllm.loading.loader import ModelLoader, get_model_and_tokenizer

__all__ = ["ModelLoader", "get_model_and_tokenizer"]
