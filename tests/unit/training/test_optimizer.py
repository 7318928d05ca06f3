"""Both players' Adam: torch's, bit for bit, and nothing of torch's compiler with it."""

import copy
import subprocess
import sys

import torch

from ali_dist.training.optimizer import EagerAdam


def test_every_step_is_that_of_torchs_adam():
    parameters = [[torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))] for _ in range(2)]
    ours = EagerAdam(parameters[0], lr=0.1, betas=(0.5, 0.99), fused=True)
    theirs = torch.optim.Adam(parameters[1], lr=0.1, betas=(0.5, 0.99), fused=True)
    for step in range(4):
        for parameter in (parameters[0][0], parameters[1][0]):
            parameter.grad = torch.sin(parameter.detach() * (step + 1))
        ours.step()
        theirs.step()
        if step == 1:
            state = theirs.state_dict()
            ours.load_state_dict(copy.deepcopy(state))
    assert torch.equal(parameters[0][0], parameters[1][0])
    ours.zero_grad()
    assert parameters[0][0].grad is None


def test_training_does_not_load_the_compiler(tmp_path):
    code = "\n".join(
        [
            "import sys",
            "from pathlib import Path",
            "from ali_dist.data.preparation.builtin import ensure_prepared",
            "from ali_dist.training import loop",
            "from tests.helpers.runs import StoppingContext, tiny_config",
            "folder = Path(sys.argv[1])",
            "ensure_prepared('mixture-ring', str(folder / 'data'))",
            "config = tiny_config(folder, 'mixture-ring', data__url=str(folder / 'data'), run__images=48)",
            "loop.fit(config, StoppingContext())",
            "assert 'torch._dynamo' not in sys.modules",
        ]
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=200
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
