"""Keep-states of channels as spins: their energies, and the search for states of low energy."""
