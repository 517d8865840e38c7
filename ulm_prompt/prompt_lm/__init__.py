"""The prompted unit LM. Its import registers the task, model, losses and optimizer in fairseq."""

import torch

from pipeline.torch_files import allow_fairseq

allow_fairseq()
torch.set_flush_denormal(True)  # gradients contain numbers below 1e-38: 5x slower to multiply
from . import losses, model, task  # noqa: E402, F401  (each module registers its classes)
