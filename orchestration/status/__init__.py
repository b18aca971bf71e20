"""What a corpus, a training run or a plan is doing, read from its folder: no process is asked."""
