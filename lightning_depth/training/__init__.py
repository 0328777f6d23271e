"""What trains: the callbacks that every run has."""
