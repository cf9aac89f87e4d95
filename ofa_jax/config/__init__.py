"""The config of a run: its one schema, the sizes, loading, checking, rendering. Imports nothing else of ours."""
