"""One pure function a file: (predictions, references) -> `measured.Measured`, a number that can be resampled."""
