"""What was asked of a run and is kept in it, for the command line and the report alike."""
