"""Monitoring of a model in service: prediction log, drift, the shadow challenger, and user feedback."""
