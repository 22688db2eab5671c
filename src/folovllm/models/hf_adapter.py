"""Any causal language model of transformers over the paged KV cache.

Transformers lets an engine register an attention function of its own (`AttentionInterface`).
The model then runs on a flat batch, `[1, T]` ids with explicit positions, without a mask and
without a cache of its own; our function writes keys and values to their slots and attends
through block tables. What the layers keep in the cache is found out by running the model once
on two tokens, not by reading its configuration, in which every family has other names for it.
What that run meets and we do not know is refused: nothing is ignored in silence.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from folovllm.attention.backend import (
    AttentionOptions,
    AttentionStep,
    LayerAttention,
    LayerSpec,
)
from folovllm.errors import ModelLoadError
from folovllm.loading.length import PositionLimit, rope_limit
from folovllm.models.trial import PositionTables, explain, watch_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAME = "folovllm_paged"
"""Under which transformers knows our attention function."""

_STATE = "a state that is no KV cache (state-space, recurrent or convolution layers)"


_NOT_PASSED: Any = object()  # where None says something: no window in this layer

_ANY = None
_HARMLESS: dict[str, tuple[object, ...] | None] = {
    "dropout": (0.0,),  # drops nothing, as outside of training
    "is_causal": (True,),  # as every step of ours is
    "position_ids": _ANY,  # are in the queries and keys already; tell flash-attn of packed texts
    "cache_position": _ANY,  # where transformers' own cache would write
    "use_cache": _ANY,  # speaks of transformers' own cache
    "output_attentions": (False,),
    "output_hidden_states": _ANY,  # is between the model and its caller, as the next
    "output_router_logits": _ANY,
    "logits_to_keep": _ANY,
    "deterministic": _ANY,  # the order of flash-attn's sums in training
}
"""Arguments of attention that change nothing here, and with which values."""


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    attention_step: "AttentionStep | LayerRecorder | None" = None,
    scaling: float | None = None,
    sliding_window: int | None = _NOT_PASSED,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend in one layer of the model; transformers' attention interface.

    Returns:
        `[1, T, num_heads, value_size]`, and no attention weights.

    Raises:
        ModelLoadError: the model makes a mask of its own, which cannot be followed over blocks,
            or asks for something that we do not know.
    """
    layer: Any = getattr(module, "layer_idx", None)
    if attention_step is None:
        raise _cannot(module, "the model's forward does not hand keyword arguments on to it")
    if layer is None:
        raise _cannot(module, "it has no layer_idx, by which its cache is found")
    if attention_mask is not None:
        raise _cannot(module, "it attends through a mask of its own")
    _check_arguments(module, others)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window
    if window is _NOT_PASSED:  # some families hand the layer's window on in a mask alone
        window = getattr(module, "sliding_window", None)
    options = AttentionOptions(scale, window, softcap, s_aux)
    return attention_step.attend(layer, query, key, value, options), None


def _check_arguments(module: torch.nn.Module, others: Mapping[str, Any]) -> None:
    """Refuse every argument that may ask for another result than ours."""
    causal = others.get("is_causal")
    if causal is False or (causal is None and getattr(module, "is_causal", True) is False):
        raise _cannot(module, "its tokens attend to those after them")
    for name, value in others.items():
        if value is None:
            continue
        allowed = _HARMLESS.get(name, ())
        if allowed is not _ANY and (isinstance(value, torch.Tensor) or value not in allowed):
            shown = "a tensor" if isinstance(value, torch.Tensor) else repr(value)
            raise _cannot(module, f"it passes {name} = {shown}, which FoloVLLM does not know")


def _cannot(module: torch.nn.Module, reason: str) -> ModelLoadError:
    return ModelLoadError(f"{type(module).__name__} cannot be served: {reason}")


AttentionInterface.register(ATTENTION_NAME, paged_attention)


class PagedModel:
    """A model whose attention goes through an `AttentionStep`.

    Args:
        model: a causal language model of transformers; it is changed for good.

    Attributes:
        name: its class and family, for messages.
        num_parameters: of the model, counted before its weights are packed.
        attention: how each attention layer attends, in the order of `layer_idx`.
        weights_read: linear layers whose weight the model's own code reads.
        selects_logits: whether its forward can be asked for the logits of some tokens alone.
        position_limit: how many positions it can be asked for; None where nothing ends.
        vocab_size: rows of the input embedding: ids from 0 to one less can be computed.

    Raises:
        ModelLoadError: it has layers that cannot be served through a paged cache; the message
            names them.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        """Refuse what cannot be served; take over the attention of what can."""
        _check_servable(model)
        self._own_attention: str = model.config.get_text_config()._attn_implementation  # noqa: SLF001
        model.set_attn_implementation(ATTENTION_NAME)
        self.model = model
        self.name = _name(model)
        self.device = model.device
        self.dtype = model.dtype
        self.num_parameters: int = model.num_parameters()
        embeddings: Any = model.get_input_embeddings()
        self.vocab_size: int = embeddings.weight.shape[0]
        parameters = inspect.signature(model.forward).parameters
        self.selects_logits = "logits_to_keep" in parameters
        _fix_rope(model)
        positions = torch.arange(2, device=self.device)
        tables = PositionTables(positions)
        with watch_weights(model) as self.weights_read, tables:
            self.attention = self._find_layers(positions)
        self.position_limit = _smaller_limit(tables.limit, rope_limit(model.config))

    @property
    def layers(self) -> list[LayerSpec]:
        """What each attention layer keeps in the cache."""
        return [layer.spec for layer in self.attention]

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        step: "AttentionStep | LayerRecorder",
        logit_rows: torch.Tensor,
    ) -> torch.Tensor:
        """Run the model on a flat batch.

        Args:
            token_ids: `[T]`.
            positions: of each token in its sequence, `[T]`.
            step: the attention of this step.
            logit_rows: of which tokens logits are wanted, `[rows]`.

        Returns:
            Logits, `[rows, vocabulary]`, in the model's data type.
        """
        selection = {"logits_to_keep": logit_rows} if self.selects_logits else {}
        output: Any = self.model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            attention_step=step,
            **selection,
        )
        logits: torch.Tensor = output.logits[0]
        return logits if self.selects_logits else logits[logit_rows]

    @contextmanager
    def own_attention(self) -> Iterator["PreTrainedModel"]:
        """Lend the model with transformers' attention, as it was loaded."""
        self.model.set_attn_implementation(self._own_attention)
        try:
            yield self.model
        finally:
            self.model.set_attn_implementation(ATTENTION_NAME)

    @torch.inference_mode()
    def _find_layers(self, positions: torch.Tensor) -> list[LayerAttention]:
        recorder = LayerRecorder()
        ids = torch.zeros_like(positions)
        try:
            self.forward(ids, positions, recorder, torch.ones_like(ids[:1]))
        except ModelLoadError as error:
            raise ModelLoadError(f"{self.name}: {error}") from error
        except Exception as error:
            raise ModelLoadError(self._why_it_fails(ids, error)) from error
        layers = recorder.layers
        count = self.model.config.get_text_config().num_hidden_layers
        if missing := sorted(set(range(count)) - set(layers)):
            raise ModelLoadError(
                f"{self.name} cannot be served: its layers {missing} keep {_STATE}, or "
                "have attention of their own; FoloVLLM serves models whose layers all attend "
                "through transformers' attention interface"
            )
        self._check_windows(layers)
        return [layers[i] for i in range(count)]

    def _why_it_fails(self, ids: torch.Tensor, error: Exception) -> str:
        """Say what is known of a forward that failed, and whether transformers' own does too."""
        if isinstance(error, TypeError) and "argument 'attention_step'" in str(error):
            return (
                f"{self.name} cannot be served: its forward does not hand keyword arguments on to "
                f"its attention layers ({error})"
            )
        with self.own_attention() as model:
            try:
                model(input_ids=ids[None], use_cache=False)
            except Exception as own:  # noqa: BLE001 - whatever it is, it is the answer
                return f"{self.name} cannot be run by transformers itself: {explain(own)}"
        return (
            f"{self.name} cannot be served: its forward works with transformers' attention and "
            f"fails with FoloVLLM's, for which no mask is made: {explain(error)}"
        )

    def _check_windows(self, layers: dict[int, LayerAttention]) -> None:
        """Refuse a model that expresses a layer's window by nothing but a mask."""
        expected = _windowed_layers(self.model.config.get_text_config(), len(layers))
        if unseen := [layer for layer in expected if layers[layer].options.window is None]:
            raise ModelLoadError(
                f"{self.name} cannot be served: by its configuration the layers {unseen} "
                "see a part of the text, and transformers says so in a mask alone"
            )


class LayerRecorder:
    """Stands in for an `AttentionStep`, which needs a cache, and notes what each layer brings."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.layers: dict[int, LayerAttention] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Note the shapes and attend to nothing; shapes as in `AttentionBackend.attend`.

        Raises:
            ModelLoadError: the layer attended before: both calls would share one cache.
        """
        if layer in self.layers:
            raise ModelLoadError(
                f"layer {layer} cannot be served: it attends twice in one forward, and the cache "
                "holds the keys and values of one attention a layer"
            )
        spec = LayerSpec(key.shape[1], key.shape[-1], value.shape[-1])
        self.layers[layer] = LayerAttention(spec, query.shape[1], options)
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])


def _name(model: "PreTrainedModel") -> str:
    return f"{type(model).__name__} ({model.config.model_type})"


def _check_servable(model: "PreTrainedModel") -> None:
    """Refuse, by name, what is known not to work before running it."""
    config: Any = model.config
    text = config.get_text_config()
    reason = ""
    if model._is_stateful and not _attends_everywhere(text):  # noqa: SLF001 - offered to ask
        reason = f"some of its layers keep {_STATE}"
    elif not model._supports_attention_backend:  # noqa: SLF001
        reason = "transformers runs its attention in code of its own, which cannot be replaced"
    elif any(type(module).__name__.endswith("Indexer") for module in model.modules()):
        reason = "its tokens attend only to those that an indexer picks (sparse attention)"
    elif getattr(text, "num_kv_shared_layers", 0):
        reason = "some of its layers use the keys and values of other layers"
    elif (limit := rope_limit(config)) is not None and limit.count < 1:
        reason = "its configuration does not say up to which length its rotary positions hold"
    if reason:
        raise ModelLoadError(f"{_name(model)} cannot be served: {reason}")


def _attends_everywhere(config: Any) -> bool:
    """Return whether a family that mixes kinds of layers has attention in all of them here."""
    kinds = getattr(config, "layer_types", None) or ()
    return bool(kinds) and set(kinds) <= {"attention", "full_attention", "sliding_attention"}


def _windowed_layers(config: Any, count: int) -> list[int]:
    """The layers that by the configuration do not see all of the text."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        partial = {"sliding_attention", "chunked_attention"}
        return [layer for layer, kind in enumerate(kinds) if kind in partial]
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    return list(range(count)) if window and used else []


def _fix_rope(model: "PreTrainedModel") -> None:
    """Keep the frequencies that rotary positions have up to the model's `rope_limit`.

    Transformers looks at the largest position of each batch to exchange them beyond that. Nothing
    beyond it is ever asked for, and the look would stop a GPU in each step.
    """
    for module in model.modules():
        kind: Any = getattr(module, "rope_type", None)
        if isinstance(kind, dict):
            module.rope_type = dict.fromkeys(kind, "default")  # type: ignore[assignment]
        elif kind in {"dynamic", "longrope"}:
            module.rope_type = "default"  # type: ignore[assignment]


def _smaller_limit(table: int | None, rope: PositionLimit | None) -> PositionLimit | None:
    """Return the limit of a learned table or of rotary positions, whichever comes first."""
    if table is None or (rope is not None and rope.count <= table):
        return rope
    return PositionLimit(table, f"its table has {table} positions, and none beyond them")
