"""Other estimators than the carried replay, to compare with."""
