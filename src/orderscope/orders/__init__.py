"""Orders of samples: checked, written as expressions, played to a DataLoader."""
