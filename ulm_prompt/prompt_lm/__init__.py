"""The prompted unit LM; its import registers task, model, losses and optimizer with fairseq."""

import torch

from pipeline.torch_files import allow_fairseq

allow_fairseq()
torch.set_flush_denormal(True)  # products of numbers below 1e-38, as gradients have, are 5x slower
from . import losses, model, task  # noqa: E402, F401  (they register themselves)
