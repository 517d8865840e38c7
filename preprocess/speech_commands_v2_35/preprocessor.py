"""The reader of speech_commands."""

from preprocess.speech_commands.preprocessor import SpeechCommands as SpeechCommands
