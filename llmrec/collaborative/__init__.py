"""Who takes what after what: models of the log alone, the baselines of every table, and vectors of behaviour."""
