"""Starting a command on every host of a cluster: one kind of cluster a file."""
