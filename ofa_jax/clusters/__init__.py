"""Starting a run on machines: Cloud TPU VMs, Kubernetes, Slurm. What is run is the user's command; nothing here knows a hyper-parameter."""
