"""What others do on whole slides, in eager PyTorch, for `bench_slides`."""

import math

import h5py
import torch
from torch import nn
from torch.nn import functional as F

COLUMNS, D, CLASSES = 1024, 128, 2
KEPT = 16  # keys that a query of FuseCPath's released code attends to


class EagerABMIL(nn.Module):
    """Gated ABMIL on one bag."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(COLUMNS, D)
        self.V, self.U, self.w = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 1, bias=False)
        self.head = nn.Linear(D, CLASSES)

    def forward(self, x):
        h = self.encoder(x).relu()
        a = torch.softmax(self.w(self.V(h).tanh() * self.U(h).sigmoid()), dim=0)
        return self.head((a * h).sum(dim=0, keepdim=True))


class H5Bags(torch.utils.data.Dataset):
    """Slides as torchmil's bags, each read from its file when it is asked for."""

    def __init__(self, folder, labels):
        self.folder, self.labels = folder, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, slide):
        with h5py.File(self.folder / f"s{slide:03d}.h5") as file:
            return {"X": torch.from_numpy(file["features"][:]), "Y": self.labels[slide]}


class EagerAttention(nn.Module):
    """Multi-head attention of FuseCPath's released code, with its top-k."""

    def __init__(self, width, position):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.position = nn.Conv2d(8, 8, (15, 1), padding=(7, 0), groups=8) if position else None

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, 8, C // 8).permute(2, 0, 3, 1, 4)
        logits = q * (C // 8) ** -0.5 @ k.transpose(-2, -1)
        if self.position is not None:
            logits = logits + self.position(logits)
        if N > KEPT:
            smallest = logits.detach().cpu().topk(KEPT, dim=-1).values[..., -1:].expand_as(logits)
            logits = logits.masked_fill(logits < smallest, -torch.finfo(logits.dtype).max)
        return F.dropout(self.out((logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C)), 0.1, self.training)


class EagerFuseCPath(nn.Module):
    """FuseCPath's released model. [B, n, columns] -> [B, CLASSES]."""

    def __init__(self, columns, width):
        super().__init__()
        self.encoder = nn.Linear(columns, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.local, self.across = EagerAttention(width, True), EagerAttention(width, False)
        self.phi = nn.Parameter(torch.randn(width, 3) / width**0.5)
        self.V, self.w, self.head = nn.Linear(width, 128), nn.Linear(128, 1, bias=False), nn.Linear(width, CLASSES)

    def regions(self, x):
        B, n, C = x.shape
        side = math.ceil(math.sqrt(n) / 8) * 8
        x = torch.cat([x, x.new_zeros(B, side * side - n, C)], dim=1)
        r = side // 8
        return x.view(B, 8, r, 8, r, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, r * r, C)

    def patches(self, x, shape):
        B, n, C = shape
        r = math.isqrt(x.shape[1])
        return x.view(B, 8, 8, r, r, C).permute(0, 1, 3, 2, 4, 5).reshape(B, -1, C)[:, :n]

    def forward(self, x):
        x = F.dropout(self.encoder(x).relu(), 0.25, self.training)
        x = x + self.patches(self.local(self.regions(self.norms[0](x))), x.shape)
        z = self.regions(self.norms[1](x))  # [regions of all slides, 9, C]
        logits = torch.einsum("wpc,cn->wpn", z, self.phi).transpose(1, 2)
        combine, dispatch = logits.softmax(dim=-1), logits.softmax(dim=1)
        low, high = logits.amin(dim=-1, keepdim=True), logits.amax(dim=-1, keepdim=True)
        summaries = torch.einsum("wpc,wnp->wnpc", z, combine).sum(dim=-2).transpose(0, 1)
        back = self.across(summaries).transpose(0, 1)
        back = torch.einsum("wnc,wnp->wnpc", back, (logits - low) / (high - low + 1e-8))
        back = torch.einsum("wnpc,wnp->wnpc", back, dispatch).sum(dim=1)
        x = self.norms[2](x + self.patches(back, x.shape))
        a = self.w(self.V(x).relu()).softmax(dim=1)
        return self.head((a * x).sum(dim=1))
