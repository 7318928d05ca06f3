"""What torch's DistributedDataParallel asks the compiler; see also tests/distributed/test_ranks.py."""

import subprocess
import sys

import pytest

QUESTIONS = {
    "known": ("torch._dynamo.utils.get_optimize_ddp_mode() == 'ddp_optimizer'", False),
    "unknown to this project": ("torch._dynamo.config.optimize_ddp is True", True),
    "unknown of a known module": ("callable(torch._dynamo.utils.is_compile_supported)", True),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_compiler_is_loaded_for_answers_that_are_not_known_and_is_itself_afterwards(question):
    expression, loads = QUESTIONS[question]
    code = "\n".join(
        [
            "import sys, torch",
            "from ali_dist.training.ddp import _compiler_kept_out",
            "with _compiler_kept_out():",
            f"    assert {expression}",
            f"assert ('torch._dynamo' in sys.modules) == {loads}",
            "assert torch._dynamo.utils.get_optimize_ddp_mode() == 'ddp_optimizer'",
            "assert torch._dynamo is sys.modules['torch._dynamo']",
        ]
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert completed.returncode == 0, completed.stderr[-2000:]
