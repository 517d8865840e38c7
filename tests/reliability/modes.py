"""Root heeds no modes of files; a process that shall can give that up."""

from __future__ import annotations

import ctypes
import os

_CAPABILITIES = 0x20080522  # the version of capget's and capset's structures
_ABOVE_MODES = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


def bow_to_modes() -> None:
    """Make root heed the modes of files, as the owner of the files that it is."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0] &= ~_ABOVE_MODES
    sets[1] &= ~_ABOVE_MODES
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
