"""Language-model cross entropy, with a weight on what follows ``<s>``."""

# no postponed annotations here: fairseq reads the types of a dataclass's fields
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from .model import SEP


@dataclass
class UnitLMCriterionConfig(FairseqDataclass):
    topic_weight: float = field(default=1.0, metadata={"help": "weight of what follows <s>"})


@register_criterion("unit_lm", dataclass=UnitLMCriterionConfig)
class UnitLMCriterion(FairseqCriterion):
    """The plain language-model loss when no ``<s>`` stands in the text."""

    def __init__(self, task: Any, topic_weight: float) -> None:
        super().__init__(task)
        self.topic_weight = topic_weight

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Returns the weighted loss, the weights' sum, and what to log."""
        tokens, target = sample["net_input"]["src_tokens"], sample["target"]  # (B, T)
        logits = model(**sample["net_input"])[0].float()  # (B, T, V)
        losses = F.cross_entropy(
            logits.transpose(1, 2), target, ignore_index=self.padding_idx, reduction="none"
        )
        after = (tokens == SEP).cumsum(1) > 0
        weights = torch.where(after, self.topic_weight, 1.0) * (target != self.padding_idx)
        loss, size = (losses * weights).sum(), weights.sum()
        logged = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": size.detach(),
        }
        return loss, size, logged

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """``loss``: weighted mean, in bits a unit."""
        size = sum(output["sample_size"] for output in logging_outputs)
        loss = sum(output["loss"] for output in logging_outputs)
        metrics.log_scalar("loss", loss / size / math.log(2), size, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
