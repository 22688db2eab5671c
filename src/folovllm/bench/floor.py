"""The least time that an engine's steps could take on a machine: what speed is a share of."""

from typing import TYPE_CHECKING, Any

from folovllm.core.plan import StepPlan
from folovllm.diagnostics.limits import DeviceLimits

if TYPE_CHECKING:
    from folovllm.engine.llm_engine import LLMEngine

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class Floor:
    """Adds up the least time of the steps that an engine executes.

    A step reads the weights and the keys and values of its sequences once, and multiplies: it
    takes at least the longer of the two. Embeddings are not multiplied; the tokens whose logits
    are needed are, by the vocabulary. What the prefix cache has, the scheduler does not plan, and
    it is not part of it.

    Args:
        engine: its executor is watched from now on.
        limits: what the device can do.
    """

    def __init__(self, engine: "LLMEngine", limits: DeviceLimits) -> None:
        """Watch the engine's steps."""
        model = engine.executor.runner.model
        config: Any = model.model.config.get_text_config()
        # Of a mixture of experts, a step reads what its tokens are sent to: that nobody knows.
        self._is_known = not any(getattr(config, name, None) for name in _EXPERTS)
        self._limits = limits
        self._itemsize = engine.setup.dtype.itemsize
        self._head: int = config.vocab_size * config.hidden_size
        embedding = 0 if config.tie_word_embeddings else self._head
        self._weights: int = model.num_parameters - self._head - embedding
        numbers = sum(layer.numbers for layer in model.layers)
        self._kv_bytes = numbers * engine.setup.kv_cache_dtype.itemsize
        self._seconds = 0.0
        execute = engine.executor.execute

        def watch(plan: StepPlan) -> Any:
            self._seconds += self._of(plan)
            return execute(plan)

        engine.executor.execute = watch  # type: ignore[method-assign]

    def take(self) -> float | None:
        """The seconds since it was last asked; None for a mixture of experts."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds if self._is_known else None

    def _of(self, plan: StepPlan) -> float:
        context = sum(entry.start + len(entry.token_ids) for entry in plan.scheduled)
        rows = sum(bool(entry.samples) for entry in plan.scheduled)
        read = (self._weights + self._head * bool(rows)) * self._itemsize + context * self._kv_bytes
        products = 2 * (plan.num_tokens * self._weights + rows * self._head)
        return max(read / self._limits.bandwidth, products / self._limits.rate)
