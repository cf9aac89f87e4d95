"""Mesh, the one logical-axis table, and start-up on several hosts."""
