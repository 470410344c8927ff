"""Measuring: Corr@k after a harmful start, S0/S1 under opposite configurations, and what general chat lost."""
