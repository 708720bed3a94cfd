"""`pippin models`: what is on the disk, and how it gets there."""
