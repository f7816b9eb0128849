"""What learns from evaluated architectures: tokens, surrogates and what proposes with them."""
