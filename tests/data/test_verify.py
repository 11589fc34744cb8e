"""``CostCache.verify``: sound caches pass, and a part that is not what was written is named."""

from __future__ import annotations

import numpy as np
import pytest

from l2d.data.errors import CorruptPart


@pytest.mark.parametrize("what", ["predictions", "costs"])
@pytest.mark.parametrize("swapped", ["chunk", "agent", "task"])
@pytest.mark.slow
def test_verify_names_a_part_that_was_swapped_with_another(workshop, recipe, what, swapped):
    workshop.build(recipe)
    folders = {"predictions": "predictions", "costs": workshop.costs_folder()}
    agents = workshop.folder / "cache" / "agents"
    victim = agents / "column" / folders[what] / "00000.parquet"
    other = {
        "chunk": victim.with_name("00001.parquet"),
        "agent": agents / "called" / folders[what] / "00000.parquet",
        "task": agents / "column" / folders["costs" if what == "predictions" else "predictions"] / "00000.parquet",
    }[swapped]
    content = victim.read_bytes()
    victim.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(CorruptPart) as caught:
        workshop.cache().verify()
    assert str(caught.value.where) in (str(victim), str(other))


@pytest.mark.slow
def test_verify_notices_a_sound_part_of_another_build(workshop, recipe):
    workshop.build(recipe)
    workshop.build(recipe.but({"agents.column.prob": "1 - risk_bad"}), out="other")
    for part, agent in (("predictions", "agents/column"), (workshop.costs_folder(), "agents/column")):
        file = workshop.folder / "cache" / agent / part / "00002.parquet"
        good = file.read_bytes()
        file.write_bytes((workshop.folder / "other" / agent / part / "00002.parquet").read_bytes())
        with pytest.raises(CorruptPart) as caught:
            workshop.cache().verify()
        assert caught.value.where == file
        file.write_bytes(good)
    workshop.cache().verify()


@pytest.mark.slow
def test_verify_notices_samples_of_another_build(workshop, recipe):
    """Same ids, another target: the costs no longer belong to it."""
    workshop.build(recipe)
    workshop.edit_data()
    workshop.build(recipe, out="other")
    name = "samples/00000.parquet"
    (workshop.folder / "cache" / name).write_bytes((workshop.folder / "other" / name).read_bytes())
    with pytest.raises(CorruptPart) as caught:
        workshop.cache().verify()
    assert str(caught.value.where).endswith(name)


@pytest.mark.parametrize("what", ["samples", "predictions", "costs"])
@pytest.mark.slow
def test_verify_refuses_a_part_with_any_bit_flipped(workshop, recipe, what):
    """Flips in the last 1,600 bytes, where the footer is: pages are tested in test_store.py."""
    workshop.build(recipe)
    cache = workshop.cache()
    folder = {"predictions": "agents/called/predictions", "costs": f"agents/called/{workshop.costs_folder()}"}
    part = workshop.folder / "cache" / folder.get(what, what) / "00000.parquet"
    content, generator, missed = part.read_bytes(), np.random.default_rng(0), []
    for position in generator.integers(len(content) - 1600, len(content), size=150):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        part.write_bytes(damaged)
        try:
            cache.verify()
            missed.append(int(position))
        except CorruptPart:
            continue
        except Exception as error:  # the message is the point: what escaped, and for which byte
            pytest.fail(f"byte {position} of {len(content)}: {error!r}")
    assert not missed, f"{len(missed)} of 150 flips pass verify(), bytes {missed[:5]} of {len(content)}"
