"""Cross entropy on labels, with the accuracy that selects the best checkpoint, and on text."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from ulm_prompt.prompt_lm.model import SEP

# no postponed annotations here: fairseq reads the types of dataclass fields

LOSS_ON = ChoiceEnum(["published", "answer"])
LOSS_ON_HELP = "published: sum from <s> on, divided by all tokens; answer: mean of labels and </s>"


class _Criterion(FairseqCriterion):
    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the losses in nats, 0 at padding: (B, T, V), (B, T) -> (B, T)."""
        return F.cross_entropy(
            logits.transpose(1, 2), target, ignore_index=self.padding_idx, reduction="none"
        )

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


@dataclass
class LabelCrossEntropyConfig(FairseqDataclass):
    loss_on: LOSS_ON = field(default="published", metadata={"help": LOSS_ON_HELP})


@register_criterion("label_cross_entropy", dataclass=LabelCrossEntropyConfig)
class LabelCrossEntropy(_Criterion):
    """Cross entropy on labels, ``</s>`` and, if ``published``, ``<s>``: see ``LOSS_ON_HELP``."""

    def __init__(self, task: Any, loss_on: str) -> None:
        super().__init__(task)
        self.loss_on = str(loss_on)

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, its divisor, and the values to log. The counts come from the
        collater, so nothing here waits for the device.
        """
        logits = model(**sample["net_input"])  # (B, Q, V)
        target, is_label = sample["target"], sample["is_label"]  # (B, Q)
        losses = self.losses(logits, target)
        is_answer = target != self.padding_idx
        is_answer[:, 0] = False  # <s>
        loss, size = (losses * is_answer).sum(), sample["answer_symbols"]
        if self.loss_on == "published":
            loss, size = losses.sum(), sample["ntokens"]
        wrong = (logits.detach().argmax(-1) != target) & is_answer
        counts = {name: sample[name] for name in ("ntokens", "nsentences")}
        logged = {
            "loss": loss.detach(),
            "label_loss": (losses * is_label).sum().detach(),
            "labels": sample["answer_symbols"] - sample["nsentences"],  # without </s>
            "correct": sample["nsentences"] - wrong.any(1).sum(),
            "sample_size": size,
        }
        return loss, size, logged | counts

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log ``loss`` in bits, as fairseq does, ``label_loss`` in nats per label, and ``accuracy``
        in %. An answer is correct if all its labels and ``</s>`` are, given the true labels before.
        """
        for name, key, count, factor in (
            ("loss", "loss", "sample_size", 1 / math.log(2)),
            ("label_loss", "label_loss", "labels", 1),
            ("accuracy", "correct", "nsentences", 100),
        ):
            total = sum(output.get(key, 0) for output in logging_outputs)  # stays on the device
            weight = max(sum(output.get(count, 0) for output in logging_outputs), 1)
            metrics.log_scalar(name, factor * total / weight, weight, round=8)


@dataclass
class UnitLMCriterionConfig(FairseqDataclass):
    topic_weight: float = field(default=1.0, metadata={"help": "weight of the tokens after <s>"})


@register_criterion("unit_lm", dataclass=UnitLMCriterionConfig)
class UnitLMCriterion(_Criterion):
    """Language-model loss with a weight on the tokens after ``<s>``, if the text has ``<s>``."""

    def __init__(self, task: Any, topic_weight: float) -> None:
        super().__init__(task)
        self.topic_weight = topic_weight

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return the weighted loss, the sum of the weights, and the values to log."""
        tokens, target = sample["net_input"]["src_tokens"], sample["target"]  # (B, T)
        logits = model(**sample["net_input"])[0].float()  # (B, T, V)
        after = (tokens == SEP).cumsum(1) > 0
        weights = torch.where(after, self.topic_weight, 1.0) * (target != self.padding_idx)
        loss, size = (self.losses(logits, target) * weights).sum(), weights.sum()
        counts = {name: sample[name] for name in ("ntokens", "nsentences")}
        return loss, size, {"loss": loss.detach(), "sample_size": size.detach(), **counts}

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log ``loss``, the weighted mean in bits per unit."""
        size = sum(output["sample_size"] for output in logging_outputs)
        loss = sum(output["loss"] for output in logging_outputs)
        metrics.log_scalar("loss", loss / size / math.log(2), size, round=3)
