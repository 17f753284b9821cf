"""From a store to batches: choosing clips and frames, augmenting, normalising and masking them."""
