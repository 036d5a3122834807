"""A program for type checkers: they find what is wrong in the lines that say so, and nothing in the others."""

import torch

from fastopt import torch as optim

model = torch.nn.Linear(3, 2)
opt = optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), state_dtype="8bit", fused=True)
scheduler = optim.lr_scheduler.StepLR(opt, 10)
model(torch.ones(3)).sum().backward()
opt.step(max_norm=1.0, zero_grads=True)
opt.zero_grad(set_to_none=True)
opt.add_param_group({"params": [torch.ones(2, requires_grad=True)], "lr": torch.tensor(0.1)})
opt.load_state_dict(opt.state_dict())
scheduler.step()

optim.SGD([{"params": list(model.parameters()), "lr": 0.1}], momentum=0.9, nesterov=True)
optim.Adam(model.named_parameters(), torch.tensor(0.1), (0.9, 0.99), decoupled_weight_decay=True)
optim.RAdam(model.parameters(), lr=0.1)
optim.clip_grad_norm_(model.parameters(), 1.0)

optim.AdamW(model.parameters(), learning_rate=0.1)  # wrong: a keyword that it does not have
optim.AdamW(model.parameters(), lr="0.1")  # wrong: text
optim.AdamW(model.parameters(), lr=lambda t: 0.1)  # wrong: a schedule
optim.AdamW(model)  # wrong: a module
optim.Adem(model.parameters())  # wrong: no such class
opt.step(max_nrom=1.0)  # wrong: a keyword that it does not have
opt.step(1.0)  # wrong: no closure
