"""What is measured by hand: rates of steps, saves, searches, and of other programs on the same work in the same run."""
