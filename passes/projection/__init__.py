"""Which weights to keep: exact selection under linear budgets."""
