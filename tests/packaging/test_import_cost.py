"""The modules that an import loads: compilers cost most of all, and most processes never compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch

from ifdd_kernels._constant import constant_result

#: Compilers and what they bring; then what only commands, training and figures need.
NOT_LOADED = (
    *(
        "torch._dynamo",
        "torch._inductor",
        "torch.fx.experimental.symbolic_shapes",
        "triton",
        "sympy",
        "networkx",
    ),
    *(
        "torch.distributed.tensor",
        "torchvision",
        "pytorch_lightning",
        "matplotlib",
        "rich",
        "jsonargparse",
        "av",
    ),
)
CODE = """
import json, sys, torch

def loaded():
    return [name for name in json.loads(sys.argv[1]) if name in sys.modules]

found = {"torch": loaded()}
import ifdd_kernels
found["ifdd_kernels"] = loaded()
import ifdd
found["ifdd"] = loaded()
x, index = torch.randn(1, 4, 3, 5, requires_grad=True), torch.tensor([[0.7, 2.2]])
ifdd_kernels.split_frames(x, index, index + 1)[0].sum().backward()
found["an op, forward and backward"] = loaded()
import torch._dynamo
found["a compiler"] = loaded()
print(json.dumps(found))
"""


def test_imports_leave_the_compilers_out() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", CODE, json.dumps(NOT_LOADED)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert {"torch._dynamo", "sympy"} <= set(found.pop("a compiler")), "the list names what compilers load"
    # A torch may come to load one of them itself.
    allowed = found.pop("torch")
    assert found == dict.fromkeys(found, allowed)


def test_the_mark_is_that_of_the_compiler() -> None:
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert vars(constant_result(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}
