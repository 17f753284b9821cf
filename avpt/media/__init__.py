"""A clip's file -> its waveform and its frames."""
