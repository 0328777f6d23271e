"""Pure functions on tensors (spectra, ranks, norms, collapse) and torchmetrics classes that carry their state."""
