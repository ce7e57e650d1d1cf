"""Where a model's weights are: copies, layers over several devices, the host's memory behind one."""
