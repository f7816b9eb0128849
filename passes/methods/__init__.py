"""Methods: how a network is brought within its budget."""
