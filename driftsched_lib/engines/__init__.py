"""Engines serve requests in real or in virtual time; `serving.Engine` is their interface."""
