"""From a batch to new weights: the device, the model and the training step."""
