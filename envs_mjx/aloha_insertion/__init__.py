"""Two ViperX arms grasp a peg and a socket and insert one into the other in the air."""
