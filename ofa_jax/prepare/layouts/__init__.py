"""How public data sets lie on disk: one file a layout, each citing the page that describes it."""
