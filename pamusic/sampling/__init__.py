"""Prime ids -> more ids. Never knows what the ids mean."""
