"""A plain loop: a GRU over sequences of unequal length, put together by a collate function of its own."""

import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

LONGEST = 9


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.letters = nn.Embedding(12, 8, padding_idx=0)
        self.gru = nn.GRU(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, ids, lengths):
        states, _ = self.gru(self.letters(ids))
        return self.head(states[torch.arange(len(ids)), lengths - 1])


def sequences(count, seed):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        label = int(torch.randint(3, (1,), generator=generator))
        length = int(torch.randint(3, LONGEST + 1, (1,), generator=generator))
        found.append((torch.randint(1, 9, (length,), generator=generator) + label, label))
    return found


def collate(samples):
    ids = pad_sequence([*(ids for ids, _ in samples), torch.zeros(LONGEST, dtype=torch.long)], batch_first=True)[:-1]
    return ids, torch.tensor([len(i) for i, _ in samples]), torch.tensor([label for _, label in samples])


def train(model, optimizer, loader):
    for batch in loader:
        ids, lengths, labels = batch
        loss = F.cross_entropy(model(ids, lengths), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(out):
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    data = sequences(64, 0)
    loader = DataLoader(data, batch_size=8, shuffle=True, collate_fn=collate)
    train(model, optimizer, loader)


if __name__ == "__main__":
    main(sys.argv[1])
