"""Loss, optimizer, step and loop."""
