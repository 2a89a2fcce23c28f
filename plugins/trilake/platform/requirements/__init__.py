"""Locks: every package with its version and hashes, for the images, a project outside this repository, and Java."""
