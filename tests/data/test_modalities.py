"""Every modality that is found, with its example parameters: the table keeps its promises."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from mptune import plugins
from mptune.data.base import Modality
from mptune.spec.schema import build

CASES = [
    pytest.param(modality, id=f"{name}-{i}")
    for name in plugins.modules("modalities")
    for i, modality in enumerate(plugins.load("modalities", name).examples())
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("modality", CASES)
class TestModality:
    def test_table_keeps_its_promises(self, modality: Modality, cache):
        modality.check()
        table = modality.prepare(cache)
        assert table.length == modality.length
        assert table.path == cache / table.hash
        for split in (table.train, table.heldout):
            tokens, observed = np.asarray(split.tokens), np.asarray(split.observed)
            assert tokens.shape == observed.shape == (len(split), table.length)
            assert split.groups.shape == (len(split),)
            assert observed.any(axis=1).all()
            assert (tokens[observed] < table.vocabulary_size).all()
            assert (tokens[~observed] == table.pad_id).all()
        assert len(table.train) >= 1
        assert len(table.heldout) >= 2
        assert table.description

    def test_second_preparation_is_the_first(self, modality: Modality, cache, tmp_path):
        table, other = modality.prepare(cache), modality.prepare(tmp_path)
        assert table.hash == other.hash
        for name in ("train", "heldout"):
            assert (getattr(table, name).tokens == getattr(other, name).tokens).all()

    def test_json_round_trip(self, modality: Modality, tmp_path):
        resolved = modality.resolved(tmp_path)
        assert build("data", json.loads(modality.model_dump_json())) == modality
        assert resolved.resolved(tmp_path / "elsewhere") == resolved

    def test_says_what_it_is(self, modality: Modality):
        assert modality.words()
        assert type(modality).__doc__
        undescribed = [n for n, f in type(modality).model_fields.items() if not f.description]
        assert undescribed == ["kind"]

    def test_refuses_unknown_keys(self, modality: Modality):
        with pytest.raises(ValidationError, match="nonsense"):
            build("data", {**modality.model_dump(), "nonsense": 1})
