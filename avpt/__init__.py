"""Audio-visual pre-training: ABRi and FusT from a folder of clips to a fused classifier."""

__version__ = "0.1.0"
