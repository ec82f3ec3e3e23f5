"""Training by several processes over MPI (section 2.1)."""
