"""Methods that balance the modalities while both are trained, one a file; `method` says what they have in common."""
