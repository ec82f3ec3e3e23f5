"""Training on many processes that MPI starts: one server, rank 0, and workers."""
