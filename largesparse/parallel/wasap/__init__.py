"""WASAP-SGD and WASSP-SGD: server, workers, replicas, averaging (Algorithm 1)."""
