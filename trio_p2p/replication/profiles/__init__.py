"""The ways typed messages are written on the wire."""
