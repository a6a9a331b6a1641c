"""Queries and their results, as stored in a run; used by the command line and the report."""
