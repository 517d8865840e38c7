"""Adam in which a parameter may move at a rate of its own."""

from __future__ import annotations

from collections.abc import Sequence

from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch.nn import Parameter


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
