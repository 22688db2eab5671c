"""Whether the model that will run computes what transformers' own forward computes.

Before anything is replaced, transformers runs a few tokens with its own modules, attention and
mask, and what enters each decoder layer is kept. After replacing, packing and fusing, the same
tokens run over a small paged cache: once whole, once in two pieces across a block's border, and
their last by itself, as in decoding. Each layer is then given what entered it in transformers'
run. So rounding does not add up from layer to layer, and where the two differ is where it begins.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from folovllm.attention.backend import (
    AttentionBackend,
    AttentionStep,
    LayerCache,
    LayerSpec,
)
from folovllm.attention.batch import Batch, lay_out
from folovllm.errors import ModelLoadError
from folovllm.loading.length import checkpoint_length
from folovllm.models.hf_adapter import PagedModel
from folovllm.models.trial import explain

logger = logging.getLogger(__name__)

LIMITS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a token's numbers may be off after one layer: the length of the difference by the
length of transformers' vector. Rounding stayed below a tenth of these in all families tried."""

_BEYOND = 3  # tokens behind a block's border and behind a window
_MOST_TOKENS = 272  # a window or a block that is longer is not crossed

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class _Piece(NamedTuple):
    """The tokens `start` to `end` of a sequence, the first or the second."""

    sequence: int
    start: int
    end: int


class ModelCheck:
    """Transformers' results on a few tokens, and the comparison with ours.

    Args:
        model: before its layers are merged, simplified or packed.
        block_size: tokens in a block of the cache.

    Raises:
        ModelLoadError: transformers cannot run the model.
    """

    def __init__(self, model: PagedModel, block_size: int) -> None:
        """Run the tokens through transformers' own forward."""
        start = time.perf_counter()
        self.model = model
        self.block_size = block_size
        count = _count_tokens(model, block_size)
        # Spread over the vocabulary, in no order; 7919 divides no size that is in use.
        self.ids = (torch.arange(1, count + 1) * 7919 % model.vocab_size).to(model.device)
        self.layers = _decoder_layers(model)
        self.expected: list[torch.Tensor] = []
        with torch.inference_mode(), model.own_attention() as own:
            selection = {"logits_to_keep": 1} if model.selects_logits else {}
            with _observe(self.layers, self._keep):
                try:
                    output: Any = own(input_ids=self.ids[None], use_cache=False, **selection)
                except Exception as error:
                    raise ModelLoadError(
                        f"{model.name} cannot be run by transformers itself: {explain(error)}"
                    ) from error
            self.expected.append(output.logits[:, -1:].clone())
        self.seconds = time.perf_counter() - start

    def _keep(self, hidden: torch.Tensor) -> torch.Tensor:
        self.expected.append(hidden.clone())
        return hidden

    @torch.inference_mode()
    def run(self, backend: AttentionBackend) -> None:
        """Run the same tokens over a paged cache, and compare.

        Args:
            backend: how the model's layers attend.

        Raises:
            ModelLoadError: the results differ beyond rounding; the message names the layer where
                that begins.
        """
        start = time.perf_counter()
        count = len(self.ids)
        blocks, caches = _make_cache(self.model, count, self.block_size)
        # The first sequence whole but for its last token, the second up to before a border.
        cut = self.block_size - 1 if 1 < self.block_size < count else count // 2
        steps = (
            [_Piece(0, 0, count - 1), _Piece(1, 0, cut)],
            [_Piece(0, count - 1, count), _Piece(1, cut, count)],
        )
        errors = []
        for pieces in steps:
            batch = _lay_out(pieces, self.ids, blocks, self.block_size)
            metadata = backend.build(batch, self.model.device)
            attention = AttentionStep(backend, caches, metadata)
            errors.append(self._compare(pieces, attention))
        self._judge(torch.cat(errors, 1).cpu())
        self.seconds += time.perf_counter() - start
        logger.info(
            "checked against transformers' own forward on %d tokens, in %.2f s", count, self.seconds
        )

    def _compare(self, pieces: list[_Piece], attention: AttentionStep) -> torch.Tensor:
        """Run a step; return how far each token is off before, between and after the layers."""
        places = [torch.arange(piece.start, piece.end) for piece in pieces]
        positions = torch.cat(places).to(self.model.device)
        errors = torch.zeros(len(self.expected), len(positions), device=self.model.device)
        calls = iter(range(len(self.expected) - 1))

        def compare(hidden: torch.Tensor) -> torch.Tensor:
            call = next(calls, None)
            if call is None:
                return hidden
            right = self.expected[call][:, positions]
            errors[call] = _difference(hidden[0], right[0])
            return right

        ends = (positions == len(self.ids) - 1).nonzero()[:, 0]
        with _observe(self.layers, compare):
            try:
                logits = self.model.forward(self.ids[positions], positions, attention, ends)
            except Exception as error:
                raise ModelLoadError(
                    f"{self.model.name} cannot be run over a paged cache: {explain(error)}"
                ) from error
        errors[-1, ends] = _difference(logits, self.expected[-1][0].expand_as(logits))
        return errors

    def _judge(self, errors: torch.Tensor) -> None:
        """Refuse a model by its errors, `[places, tokens]`."""
        limit = LIMITS.get(self.model.dtype, LIMITS[torch.float32])
        off = ~(errors <= limit)  # NaN is off too
        if _chooses_experts(self.model):
            # Rounding may turn the choice between two experts that are as good as each other:
            # a token here and there may be off in a layer.
            off &= (off.float().mean(1, keepdim=True) > 1 / 4) | (off.float().mean(0) > 1 / 2)
        if not off.any():
            return
        place = int(off.any(1).nonzero()[0])
        where = f"in its layer {place - 1}" if place else "before its first layer"
        if place == len(errors) - 1:
            where = "behind its last layer" if place else "somewhere in it"
        raise ModelLoadError(
            f"{self.model.name} cannot be served: FoloVLLM computes something else than "
            f"transformers does with the same weights, beginning {where}: {int(off[place].sum())} "
            f"of {off.shape[1]} tokens are off by up to {errors[place].max():.2g} of their size, "
            f"where rounding explains {limit:g}. If linear_backend='plain' or "
            "attention_backend='sdpa' helps, a backend is wrong: please report it with this line"
        )


def _count_tokens(model: PagedModel, block_size: int) -> int:
    """Return how many tokens cross a block's border, and windows where they are short."""
    windows = [layer.options.window or 0 for layer in model.attention]
    borders = [size for size in (block_size, *windows) if size + _BEYOND <= _MOST_TOKENS]
    wanted = max(borders, default=_MOST_TOKENS - _BEYOND) + _BEYOND
    limit = model.position_limit
    longest = limit.count if limit else checkpoint_length(model.model.config)[0]
    return max(2, min(wanted, longest))


def _decoder_layers(model: PagedModel) -> list[nn.Module]:
    """Return what transformers runs one after another; nothing where that cannot be told."""
    for module in model.model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and module and all(map(_attends, module)):
            return list(module)
    return []


def _attends(layer: nn.Module) -> bool:
    return any(hasattr(module, "layer_idx") for module in layer.modules())


@contextmanager
def _observe(
    layers: list[nn.Module], see: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Let `see` look at, and replace, what enters each layer, and what leaves the last one.

    That is `[1, T, ...]` in every family.
    """

    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (see(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": see(kwargs["hidden_states"])}

    def leaving(_: nn.Module, __: Any, output: Any) -> Any:
        return (see(output[0]), *output[1:]) if isinstance(output, tuple) else see(output)

    handles = [layer.register_forward_pre_hook(entering, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(leaving) for layer in layers[-1:]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return how far each row is off, by the right one's length; `[rows, ...]` to `[rows]`.

    A row that is not finite in transformers' run says nothing: the weights are to blame.
    """
    found, right = found.float().flatten(1), right.float().flatten(1)
    difference = torch.where(found == right, 0, found - right).norm(dim=1)
    usable = ~right.isnan().any(1)
    length = torch.where(right.isfinite(), right, 0).norm(dim=1)
    return torch.where(usable, difference / length.clamp_min(1e-30), 0)


def _chooses_experts(model: PagedModel) -> bool:
    config = model.model.config.get_text_config()
    return any(getattr(config, name, None) for name in _EXPERTS)


def _make_cache(
    model: PagedModel, count: int, block_size: int
) -> tuple[list[list[int]], list[LayerCache]]:
    """Return the blocks of two sequences, behind the null block, and the cache that has them."""
    width = -(-count // block_size)
    blocks = [list(range(1, width + 1)), list(range(width + 1, 2 * width + 1))]

    def zeros(spec: LayerSpec, size: int) -> torch.Tensor:
        shape = (2 * width + 1, block_size, spec.num_kv_heads, size)
        return torch.zeros(shape, dtype=model.dtype, device=model.device)

    caches = [
        LayerCache(zeros(spec, spec.key_size), zeros(spec, spec.value_size))
        for spec in model.layers
    ]
    return blocks, caches


def _lay_out(
    pieces: list[_Piece], token_ids: torch.Tensor, blocks: list[list[int]], block_size: int
) -> Batch:
    """Say which tokens are in a step, and where they belong."""
    ids = token_ids.cpu().numpy()
    return lay_out(
        np.concatenate([ids[piece.start : piece.end] for piece in pieces]),
        np.array([piece.start for piece in pieces]),
        np.array([piece.end - piece.start for piece in pieces]),
        np.array([blocks[piece.sequence] for piece in pieces], np.int32),
        block_size,
    )
