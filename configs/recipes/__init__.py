"""Recipes: what several runs share beside their mixture."""
