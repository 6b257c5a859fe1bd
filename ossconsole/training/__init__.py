"""Training: loader, model, loop, checkpoints; the only importer of torch and osstorchconnector."""
