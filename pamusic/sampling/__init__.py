"""Continue prime ids with more ids. Never knows what the ids mean."""
