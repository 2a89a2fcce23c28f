"""What runs the platform: embedded (on one machine, without Docker) and hosts (the three hosts and their replica)."""
