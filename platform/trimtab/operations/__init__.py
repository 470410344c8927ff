"""Running trimtab on a cluster: submitting jobs, planning a run, checking a machine."""
