"""What the image installs: the pins of constraints.txt, every file with a hash."""

from __future__ import annotations

import re
import tomllib

from tests.k8s.schemas import ROOT

FOLDER = ROOT / "k8s" / "requirements"


def name_of(requirement: str) -> str:
    """The package of a requirement, as indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def pins(text: str) -> dict[str, str]:
    """Package -> version."""
    return {name_of(n): v for n, v in re.findall(r"^([\w.-]+)==([^\s\\]+)", text, re.MULTILINE)}


def locked() -> dict[str, str]:
    """All pins of the image."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.txt"))]
    found = pins("".join(texts))
    assert len(found) == sum(len(pins(text)) for text in texts), "a package is in two files"
    return found


def test_the_image_has_the_versions_that_the_tests_run_with() -> None:
    tested = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    of_torch = pins((FOLDER / "torch.txt").read_text(encoding="utf-8")).keys() - {"torch"}
    others = {name: version for name, version in locked().items() if name not in of_torch}
    del others["setuptools"]  # make takes the newest
    assert others == {name: tested[name] for name in others}


def test_every_requirement_of_the_image_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dockerfile = (ROOT / "k8s" / "Dockerfile").read_text(encoding="utf-8")
    lock = (ROOT / "tools" / "lock.py").read_text(encoding="utf-8")
    extras = re.search(r"^EXTRAS = \((.*)\)", lock, re.MULTILINE)
    assert extras
    wanted = list(project["dependencies"])
    for extra in re.findall(r'"(.+?)"', extras[1]):
        wanted += project["optional-dependencies"][extra]
    assert {name_of(each) for each in wanted} <= locked().keys()
    for path in FOLDER.glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert len(re.findall(r"^\S+==\S+ \\\n  --hash=sha256:\w{64}", text, re.MULTILINE)) == len(
            pins(text)
        )
        assert re.search(
            rf"--require-hashes .*--requirement k8s/requirements/{path.name}", dockerfile
        )
