"""The Setup mode: profile, credentials, test of the bucket, accelerator, connector configuration."""
