"""What a network is trained on: readers, checks, standardisation, batches, data sets."""
