"""Adam in which a parameter may move at a rate of its own."""

from __future__ import annotations

from collections.abc import Sequence

from fairseq.distributed import LegacyDistributedDataParallel
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch.nn import Module, Parameter


@register_optimizer("prompt_adam", dataclass=FairseqAdamConfig)
class PromptAdam(FairseqAdam):
    """fairseq's Adam; the scheduler's rate is multiplied by a parameter's ``lr_scale`` where it has
    one.
    """

    def __init__(self, cfg: FairseqAdamConfig, params: Sequence[Parameter]) -> None:
        scales: dict[float, list[Parameter]] = {}
        for parameter in params:
            scales.setdefault(getattr(parameter, "lr_scale", 1.0), []).append(parameter)
        groups = [{"params": group, "lr_scale": scale} for scale, group in scales.items()]
        super().__init__(cfg, groups)

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def all_reduce_grads(self, module: Module) -> None:
        """As fairseq does, with a buffer for what trains; it would make one for the frozen LM."""
        wrapped = getattr(module, "module", None)
        if isinstance(wrapped, LegacyDistributedDataParallel):
            trained = sum(parameter.numel() for parameter in self.params)
            wrapped.buffer_size = min(wrapped.buffer_size, trained)
        super().all_reduce_grads(module)
