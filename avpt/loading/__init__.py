"""Store -> batches: which clips, which frames, augmented, masked, on the device."""
