"""The imports of a training worker: unused packages are not loaded, and can be imported later."""

import json
import subprocess
import sys

CHECK = """
import json, sys
from uniavgen.train.engine.deepspeed_compat import UNUSED, import_lean
import torch
compile_ = torch.compile
import_lean("cpu")
found = {"loaded": sorted(name for name in (*UNUSED, "torch._inductor.compile_fx") if name in sys.modules)}
found["compile"] = torch.compile is compile_
import sklearn, torchvision
from deepspeed.runtime.zero.utils import is_zero_supported_optimizer
from uniavgen.train.codec.text import load_minilm
found["doubled"] = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(1)).item()
found["features"] = list(load_minilm().encode(["one person speaks"], 12)[0].shape)
print(json.dumps(found))
"""


def test_unused_packages_are_not_loaded_and_stay_importable() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"loaded": [], "compile": True, "doubled": 2.0, "features": [1, 12, 384]}
