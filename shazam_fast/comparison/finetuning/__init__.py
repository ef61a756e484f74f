"""The baseline of the Shazam paper's Table 1: one teacher, fine-tuned end to end on the task's images.

The backbone is trained at a learning rate of 1e-5, the MLP head at 1e-3 (arXiv 2503.00736); the head is that of the
authors' single-model script. The best epoch is the one with the best validation score, the score that also chooses a
student's best epoch (0.8 balanced accuracy + 0.2 weighted F1). The test split is read once, at the end.
"""
