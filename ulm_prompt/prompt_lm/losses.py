"""Cross entropy where the labels stand, and the accuracy that decides which checkpoint is best."""

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

# no postponed annotations here: fairseq reads the types of a dataclass's fields


LOSS_ON = ChoiceEnum(["published", "answer"])


@dataclass
class LabelCrossEntropyConfig(FairseqDataclass):
    loss_on: LOSS_ON = field(
        default="published",
        metadata={
            "help": "published: <s>, labels and </s>, over all tokens; answer: no <s>, a mean"
        },
    )


@register_criterion("label_cross_entropy", dataclass=LabelCrossEntropyConfig)
class LabelCrossEntropy(FairseqCriterion):
    """``published``: the sum over the targets from ``<s>`` on, by the batch's token count."""

    def __init__(self, task: Any, loss_on: str) -> None:
        super().__init__(task)
        self.loss_on = str(loss_on)

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Returns the summed loss, the number it is to be divided by, and what to log. Counts come
        from the collater: nothing here waits for the device.
        """
        logits = model(**sample["net_input"])  # (B, Q, V)
        target, is_label = sample["target"], sample["is_label"]  # (B, Q)
        losses = F.cross_entropy(
            logits.transpose(1, 2), target, ignore_index=self.padding_idx, reduction="none"
        )
        is_answer = target != self.padding_idx
        is_answer[:, 0] = False  # <s>
        loss, size = (losses * is_answer).sum(), sample["nanswers"]
        if self.loss_on == "published":
            loss, size = losses.sum(), sample["ntokens"]
        wrong = (logits.detach().argmax(-1) != target) & is_answer
        logged = {
            "loss": loss.detach(),
            "label_loss": (losses * is_label).sum().detach(),
            "labels": sample["nanswers"] - sample["nsentences"],  # all but </s>
            "correct": sample["nsentences"] - wrong.any(1).sum(),
            "nsentences": sample["nsentences"],
            "ntokens": sample["ntokens"],
            "sample_size": size,
        }
        return loss, size, logged

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """``loss`` in bits as fairseq logs it; ``label_loss`` in nats a label; ``accuracy`` in %:
        all labels and ``</s>`` right, given the labels before them.
        """
        total = {  # of tensors, where they are: the meters ask for their numbers when they report
            key: sum(output.get(key, 0) for output in logging_outputs)
            for key in ("loss", "label_loss", "labels", "correct", "nsentences", "sample_size")
        }
        size = max(total["sample_size"], 1)
        metrics.log_scalar("loss", total["loss"] / size / math.log(2), size, round=8)
        labels = max(total["labels"], 1)
        metrics.log_scalar("label_loss", total["label_loss"] / labels, labels, round=8)
        rows = max(total["nsentences"], 1)
        metrics.log_scalar("accuracy", 100 * total["correct"] / rows, rows, round=8)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


# Language-model cross entropy, with a weight on what follows ``<s>``.

# no postponed annotations here: fairseq reads the types of a dataclass's fields


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
