"""Model families behind one protocol, and UniAVGen's: networks, objective, costs, checkpoints."""
