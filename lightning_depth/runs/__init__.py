"""What a run is: one directory, its record, and the callbacks that keep both true."""
