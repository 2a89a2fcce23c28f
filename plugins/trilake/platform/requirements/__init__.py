"""Locks: every package with its version and hashes, for the images, for a project of its own, and for a Java."""
