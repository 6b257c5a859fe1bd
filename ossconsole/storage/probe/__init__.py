"""The test of a bucket's two endpoints and of the key's permissions; the doctor's checks made from it."""
