"""From a clip's file to its waveform and its frames."""
