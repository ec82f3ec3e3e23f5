"""What is trained: topology, layers, network, evolution, importance, optimizer."""
