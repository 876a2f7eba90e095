"""What tests and demonstrations run on in place of the outside world: a scripted model and a sample repository."""
