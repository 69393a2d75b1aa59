"""ResNet-20 on real pictures: float16 and bfloat16 under the rounding judge are no worse than torch's own.

Measured on 500 test pictures with ranges of 512 training pictures, two busy cores: float16 58.8 dB (torch half 55.6,
and 58.7 with folded normalisations), bfloat16 39.3 dB (torch 37.4); the emulator computes 450 (float16) and 300
(bfloat16) pictures a second, onnxruntime the float32 graph 490 node by node, and 1,000 optimised.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from float16_graphs import Split, sqnr_db
from numpy.typing import NDArray

from optimizer.calibration.ranges import measure_graph
from optimizer.graph.bfloat16 import convert_to_bfloat16
from optimizer.graph.float16 import convert_to_float16
from optimizer.judge import open_judge

Floats = NDArray[np.float32]
RECIPE = Path(__file__).parents[2] / "recipes" / "cifar10-resnet20"
MEAN, STD = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def pictures(archive: Path, split: str, count: int) -> Floats:
    from PIL import Image

    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if f"/{split}/" in name and name.endswith(".jpg"))
        chosen = names[:: len(names) // count][:count]
        decoded = [np.asarray(Image.open(io.BytesIO(files.read(name))), np.float32) / 255 for name in chosen]
    return ((np.stack(decoded) - MEAN) / STD).transpose(0, 3, 1, 2).copy()


def network(checkpoint: Path) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("resnet20_of_the_recipe", RECIPE / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: torch.nn.Module = module.ResNet(3)
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})
    return net.eval()


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_resnet20_is_no_worse_than_in_torch(data: Path, tmp_path: Path) -> None:
    folder = data / "cifar10"
    net = network(folder / "checkpoints" / "resnet20-12fca82f.th")
    test, train = (pictures(folder / "images.zip", split, count) for split, count in (("test", 200), ("train", 64)))
    source = tmp_path / "source.onnx"
    name = "image"  # the older exporter takes a tenth of the time, and this graph is the same from both
    torch.onnx.export(
        net, torch.from_numpy(train[:2]), str(source), dynamo=False, input_names=[name], dynamic_axes={name: [0]}
    )
    measured = measure_graph(source, Split(**{name: train}), lambda *_: None, "float16")
    x = torch.from_numpy(test)
    with torch.no_grad():
        exact = net(x).numpy()
        for convert, dtype, least in (
            (convert_to_float16, torch.float16, 57.0),
            (convert_to_bfloat16, torch.bfloat16, 37.5),
        ):
            report = convert(source, tmp_path / "narrow.onnx", measured=measured)
            assert len(report.kept) <= 1
            session, _ = open_judge(tmp_path / "narrow.onnx", threads=2)
            with session:
                found = next(iter(session.infer({name: test}).values()))
            torchs = network(folder / "checkpoints" / "resnet20-12fca82f.th").to(dtype)(x.to(dtype)).float().numpy()
            assert sqnr_db(exact, found) >= max(least, sqnr_db(exact, torchs))
