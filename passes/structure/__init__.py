"""Which channels of a model can be removed together: analysis only, nothing is changed."""
