"""Starting a run on machines, one kind of cluster a file. What is run is the user's command; nothing here knows a hyper-parameter."""
