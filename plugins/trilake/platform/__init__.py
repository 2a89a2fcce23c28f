"""Code that runs the platform: embedded (one machine, without Docker) and hosts (the three hosts and their replica)."""
