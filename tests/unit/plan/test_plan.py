"""Plans from a config and headers: sizes, which are those of the live model, warnings and refusals."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.harness import tiny_models
from replaceme_core.engine.model.dequantize import in_full_precision
from replaceme_core.engine.model.load import stored_weights
from replaceme_core.engine.model.safetensors_io import tensors_of
from replaceme_core.errors import CalibrationTooSmall, DoesNotFit
from replaceme_core.families.layout import FAMILIES
from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.model_config import admit_config
from replaceme_core.hub.model_files import read_config
from replaceme_core.plan.duration import FIXED_SECONDS
from replaceme_core.plan.plan import Estimate
from replaceme_core.plan.resources import planned_host_bytes, shape_of
from replaceme_core.request.admission import admit_model, find_model
from replaceme_core.request.method import Method
from replaceme_core.request.resolve import Machine
from replaceme_core.request.spec import CompressionRequest, Loading
from replaceme_core.runner.messages import EvaluateRequest, PastJob, Stage
from tests.fixtures.models.headers import CPU, REVISION, SEVENTY_BILLION, SMOLLM2, HeaderHub, LlamaSize, planner
from tests.fixtures.models.images import saved_tower
from tests.fixtures.models.quantized import save_fp8, save_mxfp4
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, WIDTH, Variant, tiny_model

GB = 10**9


def request(**fields: object) -> CompressionRequest:
    body = {"model": "org/name", "ratio": 0.25, "calibration": "builtin:general", **fields}
    return CompressionRequest.model_validate(body)


def estimate_of(hub: HeaderHub, *, machine: Machine = CPU, **fields: object) -> Estimate:
    found = planner(hub, machine=machine).plan(request(**fields)).estimate
    assert found is not None
    return found


def stages(**fields: object) -> Mapping[Stage, float]:
    """The expected seconds for SmolLM2."""
    return estimate_of(HeaderHub(size=SMOLLM2), **fields).duration.stages


def test_a_check_reads_no_times_of_earlier_jobs() -> None:
    def unread() -> Sequence[PastJob]:
        raise AssertionError("a submission needs no time")

    hub = HeaderHub(size=SMOLLM2)
    model = admit_model(find_model(request().model, hub), hub)
    replace(planner(hub), history=unread).check(request().to_spec(), model)


def test_sizes_of_smollm2() -> None:
    plan = planner(HeaderHub(size=SMOLLM2)).plan(request())
    found = plan.estimate
    assert found is not None
    assert (plan.model.family, plan.model.supported, plan.model.revision) == ("llama", True, REVISION)
    assert set(plan.model.methods) == set(Method)
    assert (found.blocks.before, found.blocks.after) == (30, 22)
    assert found.parameters.before == 134_515_008
    assert found.parameters.after == 106_194_240
    assert found.weights == pytest.approx(212_410_880, rel=0.001)  # as saved
    assert (found.work.method, found.work.spec.compute.loading) == (Method.AUTO, Loading.WHOLE)
    assert (found.work.samples, found.work.length) == (96, 512)
    assert set(found.memory) == {*Stage} - {Stage.RESOLVE, Stage.DOWNLOAD, Stage.PUBLISH, Stage.HEAL}
    assert all(peak.host > 10**8 and peak.device == 0 for peak in found.memory.values())
    assert plan.spec is not None
    assert plan.spec.model.revision == REVISION


def test_seventy_billion_parameters_in_less_than_two_seconds() -> None:
    hub = HeaderHub(size=SEVENTY_BILLION, count=30)
    began = time.process_time()
    found = estimate_of(hub, machine=Machine(kind=WorkerKind.GPU, device_bytes=80 * GB, memory_bytes=2_000 * GB))
    assert time.process_time() - began < 2
    assert hub.read <= 30 * 200_000
    assert found.parameters.before == pytest.approx(70.55e9, rel=0.001)
    assert (found.blocks.before, found.blocks.after) == (80, 60)
    assert found.download == pytest.approx(141.1e9, rel=0.001)
    assert found.work.spec.compute.loading is Loading.BLOCKWISE  # 141 GB do not fit on the GPU
    assert found.work.method is Method.LEAST_SQUARES


def test_a_disk_that_is_too_small() -> None:
    machine = Machine(kind=WorkerKind.CPU, disk_bytes=GB // 4)
    plan = planner(HeaderHub(size=SMOLLM2), machine=machine).plan(request())
    assert [refusal.code for refusal in plan.refusals] == ["does_not_fit"]
    message = plan.refusals[0].message
    assert "disk space" in message and message.endswith("; choose a smaller model, or free space there")
    machine = Machine(kind=WorkerKind.CPU, download_bytes=GB // 4)
    plan = planner(HeaderHub(size=SMOLLM2), machine=machine).plan(request())
    message = plan.refusals[0].message
    assert "REPLACEME_HUB_CACHE_BYTES" in message and message.endswith("; choose a smaller model, or raise that")
    machine = Machine(kind=WorkerKind.CPU, memory_bytes=GB // 2, disk_bytes=GB // 4)
    plan = planner(HeaderHub(size=SMOLLM2), machine=machine).plan(request())
    assert "method least_squares or compute.loading blockwise" in plan.refusals[0].message


def test_less_memory_means_one_block_at_a_time() -> None:
    hub = HeaderHub(size=replace(SEVENTY_BILLION, blocks=8, vocabulary=1000), count=4)
    whole, lazy = (
        estimate_of(
            hub,
            machine=Machine(kind=WorkerKind.CPU, memory_bytes=memory, cache_bytes=GB),
            method="least_squares",
        )
        for memory in (500 * GB, 40 * GB)
    )
    assert (whole.work.is_lazy, lazy.work.is_lazy) == (False, True)
    assert lazy.host_bytes < whole.host_bytes / 2


@pytest.mark.parametrize(("samples", "more"), [(256, 0), (4096, 3)])
def test_a_refit_holds_the_streams_that_are_not_stored(samples: int, more: int) -> None:
    """Without a cache that takes all of them at most 64 GiB are stored."""
    found = []
    for cache_bytes in (0, GB, 400 * GB):
        machine = Machine(kind=WorkerKind.GPU, cache_bytes=cache_bytes)
        text = {"dataset": "builtin:general", "samples": samples, "max_length": 1024, "self_generated": 0.0}
        estimate = estimate_of(HeaderHub(size=SMOLLM2), machine=machine, method="refit", calibration=text)
        found.append(estimate.memory[Stage.SOLVE].device)
    tokens, value_bytes = samples * 1024, 2
    assert found[0] == found[1]
    assert found[0] - found[2] == pytest.approx(more * tokens * SMOLLM2.width * value_bytes, rel=0.1)


@pytest.mark.parametrize("save", [save_mxfp4, save_fp8], ids=["mxfp4", "fp8"])
def test_a_quantized_model_that_is_measured_takes_what_its_values_take(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    """In float32, after a copy in bfloat16, whatever its file has."""
    source = save(tmp_path / "source")
    fields = {"model_directory": str(source), "builtin": "builtin:code"}
    one, two = (
        planned_host_bytes(EvaluateRequest.model_validate({**fields, "others": others}))
        for others in ((), (str(source),))
    )
    with in_full_precision(source, beside=tmp_path / "copy") as copy:
        assert two - one > 3 * 0.7 * (copy / "model.safetensors").stat().st_size


def test_the_disk_takes_all_streams_where_the_cache_does_or_the_model_is_read_block_by_block() -> None:
    """Else those by which candidates are compared, at most 64 GiB, and none where nothing is compared."""
    text = {"dataset": "builtin:general", "samples": 4096, "max_length": 1024, "self_generated": 0.0}

    def disk(*, cache_bytes: int = 0, **fields: object) -> int:
        machine = Machine(kind=WorkerKind.GPU, cache_bytes=cache_bytes)
        return estimate_of(HeaderHub(size=SMOLLM2), machine=machine, calibration=text, **fields).disk

    all_streams, nothing = (2 * SMOLLM2.blocks + 1) * 4096 * 1024 * SMOLLM2.width * 2, disk(method="drop")
    assert nothing < GB
    assert disk(method="refit", cache_bytes=400 * GB) - nothing == all_streams
    assert disk(method="refit", compute={"loading": "blockwise"}) - nothing == all_streams
    for too_small in (0, GB, 100 * GB):
        assert disk(method="refit", cache_bytes=too_small) - nothing == 64 * 2**30


def test_the_logits_of_tasks_are_counted(tmp_path: Path) -> None:
    hub = HeaderHub(size=replace(SMOLLM2, vocabulary=262_144))
    with_tasks, without = (
        estimate_of(hub, evaluation={"tasks": tasks}).memory[Stage.EVALUATE].host for tasks in (["race"], [])
    )
    one_text = 4 * 450 * 262_144 * 4  # in float32
    assert one_text < with_tasks - without < 2 * one_text


def test_all_refusals_are_listed() -> None:
    machine = Machine(kind=WorkerKind.CPU, memory_bytes=GB // 2)
    one = planner(HeaderHub(size=SMOLLM2), machine=machine)
    plan = one.plan(request(calibration={"dataset": "org/none", "samples": 4, "max_length": 8}))
    assert [type(refusal) for refusal in plan.refusals][1:] == [CalibrationTooSmall, DoesNotFit]
    assert plan.refusals[0].field == "calibration"
    assert plan.spec is None


def test_nobody_misses_the_chat_template_of_a_model_of_images(tmp_path: Path) -> None:
    saved_tower(tmp_path / "org" / "name", "vit")
    plan = planner(DirectoryHub(tmp_path)).plan(request(method="drop", calibration="org/images"))
    assert (plan.model.family, plan.warnings) == ("vit", [])


def test_a_mix_for_a_model_of_images_is_refused(tmp_path: Path) -> None:
    saved_tower(tmp_path / "org" / "name", "vit")
    plan = planner(DirectoryHub(tmp_path)).plan(request(calibration=[{"self_generated": True}, "builtin:general"]))
    assert [refusal.field for refusal in plan.refusals] == ["calibration.sources"]


def test_warnings() -> None:
    hub = HeaderHub(size=SMOLLM2, gated=True)
    plan = planner(hub).plan(request(calibration={"dataset": "builtin:general", "samples": 8, "max_length": 256}))
    assert [warning.code for warning in plan.warnings] == ["gated", "no_chat_template", "few_tokens"]
    assert not plan.refusals
    hub = HeaderHub(size=SMOLLM2, json_files={"tokenizer_config.json": {"chat_template": "{{ messages }}"}})
    assert not planner(hub).plan(request()).warnings


def test_quantized_weights_are_planned_as_what_they_are_read_as(tmp_path: Path) -> None:
    source = save_fp8(tmp_path / "org" / "name")
    one = replace(planner(HeaderHub(size=SMOLLM2)), hub=DirectoryHub(tmp_path))
    calibration = {"dataset": "builtin:general", "samples": 64, "max_length": 64}
    plan = one.plan(request(calibration=calibration))
    assert "dequantized" in [warning.code for warning in plan.warnings]
    assert plan.estimate is not None and not plan.refusals
    with in_full_precision(source, beside=tmp_path / "out") as copy:
        values = stored_weights(copy).values
    assert plan.estimate.parameters.before == values
    assert plan.estimate.write > 2 * plan.estimate.parameters.after
    (source / "config.json").write_text(json.dumps({**read_config(source), "quantization_config": None}))
    plain = one.plan(request(calibration=calibration))
    assert "F8_E4M3" in str(plain.refusals[0])


@pytest.mark.parametrize("method", ["drop", "block_influence", "merge"])
def test_methods_without_maps_need_no_rank(method: str) -> None:
    calibration = {"dataset": "builtin:general", "samples": 8, "max_length": 8}
    plan = planner(HeaderHub(size=SMOLLM2)).plan(request(calibration=calibration, method=method))
    assert not plan.refusals


def test_time_follows_what_the_worker_will_decide() -> None:
    usual = stages()
    assert stages(compute={"loading": "blockwise"})[Stage.SOLVE] < usual[Stage.SOLVE] / 10  # without `auto`
    alone = {"dataset": "builtin:general", "self_generated": 0.0}
    assert stages(calibration=alone)[Stage.CALIBRATE] < usual[Stage.CALIBRATE]  # the model writes no text
    repeating = stages(calibration={**alone, "repeated": 1.0})
    assert repeating[Stage.CALIBRATE] > 1.5 * stages(calibration=alone)[Stage.CALIBRATE]
    assert repeating[Stage.EVALUATE] == pytest.approx(stages(calibration=alone)[Stage.EVALUATE])
    assert usual[Stage.SELECT] + usual[Stage.SOLVE] > 60
    limited = stages(method={"name": "auto", "time_budget_seconds": 60})
    assert limited[Stage.SELECT] + limited[Stage.SOLVE] == pytest.approx(60, abs=1.5)  # and what they take at least


def test_time_of_tasks() -> None:
    """That of both models, in proportion to the questions; the other stages do not change."""

    plain = stages()
    few, more = (stages(evaluation={"tasks": ["piqa"], "task_limit": limit}) for limit in (100, 300))
    assert {stage for stage in plain if plain[stage] != pytest.approx(few[stage])} == {Stage.EVALUATE}
    of_few, of_more = (one[Stage.EVALUATE] - plain[Stage.EVALUATE] for one in (few, more))
    assert of_more == pytest.approx(3 * of_few) != 0
    whole = stages(evaluation={"tasks": ["replaceme_paper"]})[Stage.EVALUATE]
    assert whole > 10 * plain[Stage.EVALUATE]
    shots = {"tasks": ["piqa"], "task_limit": 100, "few_shot": 3}
    assert stages(evaluation=shots)[Stage.EVALUATE] > few[Stage.EVALUATE]


def test_families_that_tie_by_default() -> None:
    assert {name for name in FAMILIES if getattr(CONFIG_MAPPING[name](), "tie_word_embeddings", False)} == {
        name for name, row in FAMILIES.items() if row.tied
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_parameters_are_those_of_the_model(variant: Variant, tmp_path: Path) -> None:
    model = tiny_model(variant)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    shape = shape_of(admit_config(config), config, tensors_of([tmp_path / "model.safetensors"]))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.blocks == BLOCKS
    assert (shape.width, shape.item_bytes, shape.vocabulary) == (WIDTH, 4, 260)
    assert shape.parameters_after([1, 2]) == shape.parameters - sum(shape.block_values[1:3])
    assert shape.parameters_after(2) == pytest.approx(shape.parameters_after([3, 4]), rel=0.2)


@pytest.mark.parametrize("model_type", ["mixtral", "granitemoe", "granitemoehybrid"])
def test_experts_that_wait_are_those_of_the_weights(model_type: str, tmp_path: Path) -> None:
    """Under the names of their family. In the live model they are stacked."""
    model = tiny_models.built(tiny_models.tiny_config(model_type, **tiny_models.fitting_sizes(model_type)))
    model.save_pretrained(tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    shape = shape_of(admit_config(given), given, tensors_of([tmp_path / "model.safetensors"]))
    experts, routed_to = model.config.num_local_experts, model.config.num_experts_per_tok
    stacked = sum(one.numel() for one in model.parameters() if one.dim() == 3 and len(one) == experts)
    assert stacked > 0
    assert shape.idle_values == stacked * (experts - routed_to) // experts


@dataclass(frozen=True, kw_only=True)
class Mixture(LlamaSize):
    """With eight experts in place of each MLP."""

    routed_to: int

    @property
    def config(self) -> dict[str, object]:
        experts = {"num_local_experts": 8, "num_experts_per_tok": self.routed_to}
        return {**super().config, **experts, "model_type": "mixtral"}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in super().tensors().items():
            head, is_inner, part = name.partition(".mlp.")
            names = [f"{head}.block_sparse_moe.experts.{number}.{part}" for number in range(8)] if is_inner else [name]
            found |= dict.fromkeys(names, shape)
        return found


def test_a_token_takes_the_time_of_the_experts_it_is_routed_to() -> None:
    few, all_of_them = (
        estimate_of(HeaderHub(size=Mixture(routed_to=number)), heal={"tokens": 10**6}) for number in (2, 8)
    )
    attention, inner = 2 * 576 * (576 + 192) + 2 * 576, 3 * 576 * 1536
    computed, whole = (attention + number * inner for number in (2, 8))
    ratios = {
        stage: (few.duration.stages[stage] - FIXED_SECONDS[stage])
        / (all_of_them.duration.stages[stage] - FIXED_SECONDS[stage])
        for stage in (Stage.SELECT, Stage.HEAL)
    }
    assert ratios[Stage.SELECT] == pytest.approx(computed / whole)
    assert ratios[Stage.HEAL] == pytest.approx(computed / whole, rel=0.15)  # which also has the head
    assert few.parameters == all_of_them.parameters
    assert few.memory == all_of_them.memory


def test_healing_is_in_the_plan() -> None:
    """Of SmolLM2 on two cores it took about twenty minutes; all weights but 28 million of embeddings are trained."""
    hub = HeaderHub(size=SMOLLM2)
    without, found, some = (
        estimate_of(hub, heal=heal) for heal in (None, {"tokens": 200_000}, {"tokens": 200_000, "weights": "some"})
    )
    names = list(found.duration.stages)
    assert names[names.index(Stage.FOLD) :][:3] == [Stage.FOLD, Stage.HEAL, Stage.SAVE]
    assert 900 < found.duration.stages[Stage.HEAL] < 1800
    assert found.memory[Stage.HEAL].host > some.memory[Stage.HEAL].host > without.memory[Stage.SAVE].host
    assert found.disk - without.disk == pytest.approx(200_000 * 606 + 32 * found.parameters.after)
    small = planner(hub, machine=replace(CPU, memory_bytes=5 * 10**8)).plan(request(heal={"tokens": 9}))
    assert [one.field for one in small.refusals] == ["heal"]
