"""What surrounds an experiment: configs, run directories, progress, reports."""
