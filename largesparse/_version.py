"""The version: read by the build, and by the package's own modules."""

__version__ = "0.1.0"
