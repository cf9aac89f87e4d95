"""The eight pretraining tasks as values, and the builder that turns a record into a row of encoded sequences."""
