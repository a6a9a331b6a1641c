"""A recording from its first step to its table: what is bought, who computes it, what it costs."""
