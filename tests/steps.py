"""An epoch of training steps, for tests that look at single ones."""

import torch

import shazam_fast as sf
from shazam_fast.training import feed as feeds
from shazam_fast.training.plan import plan_epoch
from shazam_fast.training.step import TrainingStep

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH = 16
PLAIN = {"balance": 0.0, "teacher_heads": 0.0, "mixup": 0.0, "feature_dropout": 0.0, "schedule": "constant"}
EVERYTHING = {
    "teacher_dropout": 0.3, "balance": 0.7, "teacher_heads": 0.4, "feature_dropout": 0.5, "schedule": "one_cycle",
    "mixup": 0.3,
}  # fmt: skip


class Loop:
    """An epoch of training over a split of the archive."""

    def __init__(self, archive, dtype=torch.float32, **options):
        self.config = sf.TrainConfig(**{"dim": 16, "depth": 2, "batch_size": BATCH, **PLAIN, **options})
        self.n_rows = archive.split("train")
        generator = torch.Generator().manual_seed(0)
        self.student = sf.Student(self.config.student(archive.teachers, archive.classes), generator)
        if self.config.teacher_heads:
            self.student.add_teacher_heads(generator)
        self.student = self.student.to(DEVICE, dtype)
        lr = torch.tensor(1e-3, device=DEVICE) if self.config.schedule == "one_cycle" else 1e-3
        optimizer = torch.optim.AdamW(self.student.parameters(), lr, fused=True, capturable=DEVICE.type == "cuda")
        self.steps = -(-len(self.n_rows) // BATCH)
        terms = 2 + 2 * len(archive.teachers) + (len(archive.teachers) if self.config.teacher_heads else 0)
        self.losses = torch.zeros(self.steps, terms, device=DEVICE, dtype=dtype)
        feed = feeds.TrainingFeed(archive, self.n_rows, DEVICE, BATCH)
        objective = self.config.objective(torch.bincount(torch.from_numpy(archive.labels[self.n_rows])).to(DEVICE))
        dropout = self.config.feature_dropout
        self.step = TrainingStep(self.student, optimizer, objective, feed, self.losses, dropout)
        self.plan = plan_epoch(self.config, 0, len(self.n_rows), range(len(archive.teachers)), archive.width)

    def begin(self):
        self.step.begin(self.plan, 0)

    def run(self, run):
        """All batches through `run`, the last one short; parameters and losses afterwards."""
        for start in range(0, len(self.n_rows), BATCH):
            run(min(BATCH, len(self.n_rows) - start))
        return [p.detach().clone() for p in self.student.parameters()] + [self.losses.clone()]

    def plainly(self, size):
        self.step._feed.fetch()
        self.step._compute(size)
