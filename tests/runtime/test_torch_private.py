"""Private names of torch stay in one file."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(
    r"\b(torch|nn|parametrizations)(\.\w+)*\._[a-z]\w*"  # torch._inductor, nn.modules.x._BatchNorm
    r"|from torch[\w.]* import .*\b_[a-zA-Z]"
    r"|\b_(SpectralNorm|BatchNorm|cdata|shutdown_workers|dynamo|inductor)\b"
)


def test_private_names_of_torch_are_used_in_one_file_alone():
    sources = [*(ROOT / "ecgan").rglob("*.py"), *(ROOT / "ecgan_cli").rglob("*.py")]
    found = {
        path.relative_to(ROOT).as_posix()
        for path in sources
        if PRIVATE.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"ecgan/runtime/torch_private.py"}
