"""From a batch to new weights: the device, the model, the training step."""
