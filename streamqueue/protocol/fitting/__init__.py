"""Payloads with types: what fits a class, and what an instance of one is stored as."""
