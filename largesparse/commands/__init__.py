"""The `largesparse` command line."""
