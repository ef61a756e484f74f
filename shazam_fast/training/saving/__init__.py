"""What a training leaves on disk: checkpoints while it runs, records of it afterwards."""
