"""What is looked at before a run is paid for: machine, mesh, folders, data, memory, pace. It joins the data side and the training side."""
