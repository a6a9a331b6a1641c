"""Questions that take many predictions or true runs: validation, positions, memory."""
