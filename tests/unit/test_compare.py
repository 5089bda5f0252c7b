from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import GPU_RESULTS, ROOT

from vllm_nfp.cli import main
from vllm_nfp.results.compare import CHANCE_SHARE, CompareError, compare
from vllm_nfp.results.profile import Profile, save_profile
from vllm_nfp.types import Basis, Boundary


def only(profile: Profile, module: str, batch_size: int, context: int) -> Profile:
    def keep(rows: tuple[object, ...]) -> tuple[object, ...]:
        key = (module, batch_size, context)
        return tuple(r for r in rows if (r.module, r.batch_size, r.context) == key)  # type: ignore[attr-defined]

    return replace(
        profile,
        curves=keep(profile.curves),
        boundaries=keep(profile.boundaries),
        predictions=(),
        layer_times=(),
    )


def with_boundary(profile: Profile, positions: int, lower: int, upper: int) -> Profile:
    row = Boundary("model", 8, 4096, 0.1, positions, lower, upper, False, positions)
    return replace(profile, boundaries=(row,))


def of_basis(profile: Profile, basis: Basis) -> Profile:
    return replace(
        profile,
        curves=tuple(replace(row, basis=basis) for row in profile.curves),
        boundaries=tuple(replace(row, basis=basis) for row in profile.boundaries),
    )


@pytest.fixture
def one(dense_profile: Profile) -> Profile:
    """Whole step, B=8, L=4096; measured at 1 2 3 4 5 6 8 12 16 24 32 48 64."""
    return of_basis(only(dense_profile, "model", 8, 4096), Basis.MEASURED)


def scaled(profile: Profile, factor: float) -> Profile:
    """All times longer by the same factor, as after a drop of the clocks."""
    rows = tuple(
        replace(
            row,
            median_seconds=row.median_seconds * factor,
            seconds_lower=row.seconds_lower * factor,
            seconds_upper=None if row.seconds_upper is None else row.seconds_upper * factor,
        )
        for row in profile.curves
    )
    return replace(profile, curves=rows)


def test_a_profile_does_not_differ_from_itself(dense_profile: Profile) -> None:
    found = compare(dense_profile, dense_profile)
    assert found.settings == ()
    assert found.significant_nfp == ()
    assert found.significant_times == ()
    assert len(found.nfp) == len(dense_profile.boundaries)
    assert len(found.times) == len(dense_profile.curves)


@pytest.mark.parametrize(
    ("before", "after", "significant"),
    [
        ((8, 8, 8), (12, 12, 12), True),
        ((8, 8, 12), (12, 8, 12), False),
        ((8, 6, 8), (12, 12, 16), True),
        ((8, 6, 12), (16, 12, 16), False),
        # Nothing is known above the largest probed count.
        ((64, 48, 64), (64, 64, 64), False),
        ((48, 48, 48), (64, 64, 64), True),
    ],
)
def test_boundaries_move_if_their_intervals_are_apart(
    one: Profile,
    before: tuple[int, int, int],
    after: tuple[int, int, int],
    significant: bool,
) -> None:
    for a, b in ((before, after), (after, before)):
        (row,) = compare(with_boundary(one, *a), with_boundary(one, *b)).nfp
        assert row.significant is significant


def test_between_other_grids_a_gap_is_no_change(one: Profile) -> None:
    """8 on a grid that goes on with 12 may be 11; so may 10 on a grid that has 10."""
    points = tuple(replace(row, positions=10) if row.positions == 12 else row for row in one.curves)
    other = with_boundary(replace(one, curves=points), 10, 10, 10)
    (row,) = compare(with_boundary(one, 8, 8, 8), other).nfp
    assert row.significant is False


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("basis", "judged"), [(Basis.INFERRED, None), (Basis.PREDICTED, None), (Basis.MEASURED, True)]
)
def test_what_one_profile_has_not_measured_is_no_change(
    one: Profile, basis: Basis, judged: bool | None, which: int
) -> None:
    pair = [with_boundary(one, 8, 8, 8), with_boundary(scaled(one, 1.5), 16, 16, 16)]
    pair[which] = of_basis(pair[which], basis)
    found = compare(*pair)
    (row,) = found.nfp
    assert row.significant is judged
    assert (row.before_basis, row.after_basis)[which] is basis
    assert {row.significant for row in found.times} == {judged}
    assert len(found.significant_nfp) == bool(judged)


def test_times_change_if_their_intervals_are_apart(one: Profile) -> None:
    found = compare(one, scaled(one, 1.5))
    told = [row for row in found.times if row.significant is not None]
    assert told
    assert all(row.significant and row.ratio == pytest.approx(1.5) for row in told)
    assert compare(one, scaled(one, 1.00001)).significant_times == ()


def test_too_few_samples_say_neither(one: Profile) -> None:
    points = tuple(replace(row, seconds_lower=0.0, seconds_upper=None) for row in one.curves)
    found = compare(one, scaled(replace(one, curves=points), 3.0))
    assert {row.significant for row in found.times} == {None}


def test_the_share_by_chance_is_that_of_two_intervals() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2_000_000))
    apart = np.mean(np.abs(a - b) > 2 * 1.959964)
    assert apart == pytest.approx(CHANCE_SHARE, abs=0.0005)
    assert math.erfc(1.959964 * 2 / 2) == pytest.approx(CHANCE_SHARE, abs=0.0005)


def test_settings_that_differ_are_named(one: Profile) -> None:
    environment = replace(
        one.environment,
        vllm="0.33.0",
        quantization="fp8",
        date_unix_seconds=1.0,
        device=replace(one.environment.device, name="B200"),
    )
    found = compare(one, replace(one, environment=environment))
    assert {(s.name, s.before, s.after) for s in found.settings} == {
        ("environment.vllm", "0.32.0", "0.33.0"),
        ("environment.quantization", "-", "fp8"),
        ("environment.device.name", "NVIDIA H100 80GB HBM3", "B200"),
    }


def test_what_an_old_profile_does_not_record_is_no_change(one: Profile) -> None:
    old = replace(one.environment, max_num_seqs=0, cudagraph_capture_sizes=(), block_size=0)
    new = replace(one.environment, max_num_seqs=256, cudagraph_capture_sizes=(1, 2), block_size=16)
    a, b = replace(one, environment=old), replace(one, environment=new)
    assert compare(a, b).settings == ()
    assert compare(b, a).settings == ()
    c = replace(one, environment=replace(new, max_num_seqs=64))
    assert [row.name for row in compare(b, c).settings] == ["environment.max_num_seqs"]


def test_two_models_or_gpus_are_named_first(tmp_path: Path, one: Profile) -> None:
    other = replace(
        one,
        environment=replace(one.environment, device=replace(one.environment.device, name="B200")),
        model=replace(one.model, name="another"),
    )
    paths = [str(tmp_path / "one.json"), str(tmp_path / "other.json")]
    for path, profile in zip(paths, (one, other), strict=True):
        save_profile(Path(path), profile)
    lines = invoke(*paths)[1].splitlines()
    assert lines[0] == "Two different devices: NVIDIA H100 80GB HBM3 and B200."
    assert lines[1] == f"Two different models: {one.model.name} and another."
    assert lines[2] == "The changes below are differences between them."
    assert "Two different" not in invoke(paths[0], paths[0])[1]


def test_a_cut_model_is_named_first(tmp_path: Path, one: Profile) -> None:
    whole = replace(one, model=replace(one.model, whole_num_layers=None))
    cut = replace(one, model=replace(one.model, num_layers=8, whole_num_layers=36))
    paths = [str(tmp_path / "whole.json"), str(tmp_path / "cut.json")]
    for path, profile in zip(paths, (whole, cut), strict=True):
        save_profile(Path(path), profile)
    assert "Only a part of a model was timed (after: 8 of 36 layers)." in invoke(*paths)[1]
    assert "Only a part" not in invoke(paths[0], paths[0])[1]


def test_profiles_without_a_common_cell_are_refused(dense_profile: Profile) -> None:
    a, b = only(dense_profile, "model", 8, 4096), only(dense_profile, "attention", 1, 1024)
    with pytest.raises(
        CompareError, match=r"no cell in common: the first has model at B=8 L=4096, the second att"
    ):
        compare(a, b)
    with pytest.raises(CompareError, match="the first has none"):
        compare(replace(a, curves=(), boundaries=()), b)


def test_cells_of_one_profile_alone_are_named(dense_profile: Profile, one: Profile) -> None:
    found = compare(dense_profile, one)
    assert "attention B=1 L=1024" in found.only_before
    assert found.only_after == ()


@pytest.fixture
def files(tmp_path: Path, dense_profile: Profile, one: Profile) -> dict[str, str]:
    dense_profile = of_basis(dense_profile, Basis.MEASURED)
    moved = with_boundary(scaled(one, 1.2), 32, 32, 32)
    moved = replace(moved, environment=replace(moved.environment, vllm="[red]0.33\x1b[31m"))
    paths = {}
    for name, profile in (("dense", dense_profile), ("moved", moved)):
        paths[name] = str(tmp_path / f"{name}.json")
        save_profile(Path(paths[name]), profile)
    return paths


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["compare", *arguments], env={"COLUMNS": "120"})
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def test_the_command_tells_what_changed(files: dict[str, str]) -> None:
    code, text = invoke(files["dense"], files["moved"])
    assert code == 0
    assert "NFP: 1 of 1 boundaries moved significantly" in text
    assert "16 [16, 16]   32 [32, 32]   more" in text
    assert "slower" in text
    assert "+20.0%" in text
    assert "[red]0.33?[31m" in text, "markup or control characters of a profile took effect"
    assert "Only before: model B=1 L=1024" in text


def test_the_command_tells_predictions_from_changes(
    tmp_path: Path, dense_profile: Profile, one: Profile
) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    save_profile(before, with_boundary(one, 8, 8, 8))
    save_profile(after, of_basis(with_boundary(scaled(one, 2.0), 16, 16, 24), Basis.PREDICTED))
    code, text = invoke(str(before), str(after))
    assert code == 0
    assert "NFP: none of 1 boundaries was measured in both profiles" in text
    assert "no significant change in 0" not in text
    assert "Median times: too few samples, or not measured in both profiles" in text
    code, text = invoke(str(before), str(after), "--all")
    assert "16 [16, 24] predicted" in text
    assert "not compared" in text
    assert "slower" not in text
    values = json.loads(invoke(str(before), str(after), "--json")[1])
    assert (values["nfp"][0]["before_basis"], values["nfp"][0]["after_basis"]) == (
        "measured", "predicted",
    )  # fmt: skip


def test_the_command_says_that_nothing_changed(files: dict[str, str]) -> None:
    code, text = invoke(files["dense"], files["dense"])
    assert code == 0
    assert "NFP: no significant change in 81 boundaries" in text
    assert "Median times: no significant change in" in text
    assert "┃" not in text
    code, text = invoke(files["dense"], files["dense"], "--all")
    assert text.count("no significant change") > 81


def test_the_command_prints_json(files: dict[str, str]) -> None:
    code, text = invoke(files["dense"], files["moved"], "--json")
    values = json.loads(text)
    assert code == 0
    assert values["schema"] == 1
    assert values["nfp"][0]["significant"] is True
    frame = compare_frame(files)
    assert list(frame.columns) == list(values["nfp"][0])


def compare_frame(files: dict[str, str]) -> object:
    from vllm_nfp import load_profile

    return compare(load_profile(files["dense"]), load_profile(files["moved"])).to_dataframe()


def test_the_command_refuses_in_a_sentence(files: dict[str, str], tmp_path: Path) -> None:
    code, text = invoke(files["dense"], str(tmp_path / "nothing.json"))
    assert code == 2
    assert text.strip().endswith("nothing.json cannot be read: No such file or directory")


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_two_halves_of_one_gpu_run_do_not_differ(name: str) -> None:
    """Odd and even pairs of the same server: whatever is called significant here is an error."""
    sys.path.insert(0, str(ROOT))  # the scripts are no part of the installed package
    from benchmarks.prediction import to_profile

    halves = [to_profile.build(GPU_RESULTS, name, slice(start, None, 2)) for start in (0, 1)]
    found = compare(*halves)
    assert len(found.nfp) > 60
    told = [row for row in found.times if row.significant is not None]
    assert len(told) > 80
    assert found.significant_nfp == ()
    assert len(found.significant_times) <= 1
