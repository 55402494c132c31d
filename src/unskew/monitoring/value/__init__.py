"""What a feature costs and what it earns."""
