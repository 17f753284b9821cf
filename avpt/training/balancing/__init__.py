"""Methods that balance the modalities while both are trained, one per file; `method` has their common interface."""
