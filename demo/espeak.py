"""Speech from text with the espeak-ng library that the PyPI wheel ``espeakng-loader`` carries
(ctypes, no sound card).
"""

from __future__ import annotations

import ctypes

import espeakng_loader
import numpy as np

from pipeline.errors import UserError

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback, no sound card, no thread
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report a failure instead of ending the process
_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Espeak:
    """The synthesiser of this process. The library has one global state: make one instance a
    process.

    What it returns depends on what it spoke before (phases and noise run on), so the same sequence
    of calls in a fresh process gives the same samples.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data_path = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate: int = self._library.espeak_Initialize(
            _SYNCHRONOUS, 0, data_path, _DONT_EXIT
        )
        if self.sample_rate <= 0:
            raise UserError(
                f"{data_path.decode()}: espeak-ng could not read its data; "
                "reinstall the package espeakng-loader"
            )
        self._pieces: list[np.ndarray] = []
        self._callback = _Callback(self._receive)  # kept: ctypes does not hold it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0  # go on

    def set_voice(self, name: str) -> None:
        """Choose a voice such as ``en-us+m4`` (accent + variant). Raises ``UserError`` for an
        unknown one.
        """
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {name!r}")

    def speak(self, text: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Return ``text`` as (T,) float32 in [-1, 1] at ``sample_rate``.

        ``rate`` in words a minute (80-450), ``pitch`` and ``pitch_range`` in 0..100 (50 is the
        voice's own).
        """
        for parameter, value in (
            (_RATE, rate),
            (_VOLUME, 100),
            (_PITCH, pitch),
            (_RANGE, pitch_range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces = []
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        if not self._pieces:
            raise UserError(f"espeak-ng spoke nothing for {text!r}")
        return np.concatenate(self._pieces).astype(np.float32) / 32768
