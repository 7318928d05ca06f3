"""Adam is torch's, bit for bit, and nothing that a run does loads torch's compiler."""

import copy
import subprocess
import sys

import torch

from ali_dist.eager_adam import EagerAdam


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


def test_a_run_with_evaluation_and_galleries_does_not_load_the_compiler(tmp_path):
    """Neither the compiler nor SymPy, which torch's meta tensors load: they take seconds of a first evaluation."""
    code = "\n".join(
        [
            "import sys",
            "from pathlib import Path",
            "from ali_dist.data.preparation.builtin import ensure_prepared",
            "from ali_dist.training import loop",
            "from tests.helpers.runs import StoppingContext, tiny_config",
            "folder = Path(sys.argv[1])",
            "ensure_prepared('digits', str(folder / 'data'))",
            "looks = dict(report__evaluation='auto', report__gallery_every=64, report__evaluation_samples=64)",
            "config = tiny_config(folder, 'digits', data__url=str(folder / 'data'), run__images=64, **looks)",
            "loop.fit(config, StoppingContext())",
            "assert sorted(path.name for path in folder.rglob('latents-*.png'))",
            "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)",
        ]
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=200
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
