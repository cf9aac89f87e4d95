"""Pure transforms of pictures, boxes and text."""
