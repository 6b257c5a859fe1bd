"""The Browse mode: folders and objects, their details, and the jobs on them."""
