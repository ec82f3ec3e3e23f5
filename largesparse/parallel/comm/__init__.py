"""How ranks reach each other: messages, transfers, failures, control."""
