"""`largesparse bench`: what a machine does with every part of the library, in one file."""
