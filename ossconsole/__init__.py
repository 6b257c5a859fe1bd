"""Terminal console for training on a cloud GPU with data in Alibaba Cloud OSS, read through an OSS accelerator."""

__version__ = "0.1.0"
