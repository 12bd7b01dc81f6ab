"""Makes a torchvision built for CUDA importable over a torch that is not. Goes into the environment of `make vllm`.

Its own library does not load there, and its import then fails: "operator torchvision::nms does not exist". So what it
asks for is declared just before. It does nothing, and no text model needs it: transformers only imports torchvision, for image
processors that dynamo.vllm imports. Where torchvision is the CPU build (+cpu) nothing is done.
"""

from __future__ import annotations

import sys
from importlib import metadata
from importlib.machinery import ModuleSpec

OPERATORS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))


class Before:
    """A finder that finds nothing: it is asked for torchvision once, and leaves."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.kept = torch.library.Library("torchvision", "DEF")  # its operators go with it
            for operator in OPERATORS:
                self.kept.define(operator)
        return None


before = Before()
if "+cpu" not in metadata.version("torchvision"):
    sys.meta_path.insert(0, before)
