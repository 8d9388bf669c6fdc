"""How good: maps, masks, thresholds, and what each part of the method is worth."""
