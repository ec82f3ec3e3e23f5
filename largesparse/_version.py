"""The version, and where its documentation is: read by the build and the package's own modules."""

__version__ = "0.2.0"
DOCUMENTATION = "https://largesparse.github.io/largesparse/"  # as in pyproject.toml
