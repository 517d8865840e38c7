"""The prompted unit LM; its import registers task, model, losses and optimizer with fairseq."""

from pipeline.torch_files import allow_fairseq

allow_fairseq()
from . import losses, model, task  # noqa: E402, F401  (they register themselves)
