"""The prompted unit LM: fairseq's ``--user-dir``."""

import sys

# fairseq imports a --user-dir by its folder's bare name: let that name be this very module,
# so that nothing registers twice.
sys.modules.setdefault("prompt_lm", sys.modules[__name__])

from pipeline.torch_files import allow_fairseq  # noqa: E402

allow_fairseq()
from . import losses, model, task  # noqa: E402, F401  (they register themselves)
