"""Complete or absent; and a model that does not work is not called saved."""

import io
import json
import logging
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer, PreTrainedModel
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name
from transformers.utils import logging as transformers_logging

from benchmarks.harness import tiny_models
from benchmarks.harness.tiny_models import Fields
from replaceme_core.engine.model import lazy_model, save
from replaceme_core.engine.model.changes import kept_blocks, remove_blocks
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_config, load_model, load_tokenizer, stored_weights
from replaceme_core.engine.model.safetensors_io import all_finite
from replaceme_core.engine.model.save import complete_or_absent, save_block_by_block, save_model, verify_saved
from replaceme_core.errors import OutOfSpace, VerificationFailed
from replaceme_core.families.layout import FAMILIES
from replaceme_core.families.resolve import resolve
from replaceme_core.hub.model_files import CARRIED_FILES
from replaceme_core.request.spec import Loading
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, save_tiny, tiny_model, token_ids

PROMPT = token_ids(1, 16)[0]


def test_a_directory_appears_at_once(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with complete_or_absent(target) as partial:
        (partial / "a").write_text("x")
        assert not target.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "model", "a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_or_not_at_all(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with complete_or_absent(tmp_path / "model") as partial:
            (partial / "a").write_text("x")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_result_without_disk_space_is_not_begun(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with pytest.raises(OutOfSpace, match="at least 1,000,000,000,000,000,000 bytes"):
        complete_or_absent(target, least=10**18).__enter__()
    assert list((tmp_path / "new").iterdir()) == []
    with complete_or_absent(target, least=1):
        pass
    assert target.is_dir()


def test_everything_a_user_needs_is_saved_with_all_terms_and_without_the_card(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", chat_template="{{ messages }}", dtype=torch.bfloat16)
    terms = ("LICENSE.txt", "NOTICE", "USE_POLICY.md")
    for name in (*terms, "README.md"):
        (source / name).write_text(f"This is {name}.")
    (source / "license").mkdir()
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    model = load_model(source, dtype=torch.bfloat16, device="cpu")
    model.config._name_or_path = "somewhere/else"
    out = tmp_path / "out"
    save_model(model, out, source=source)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", *terms):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert load_tokenizer(out).chat_template == "{{ messages }}"
    assert AutoTokenizer.from_pretrained(out).get_chat_template("tool_use") == "{{ tools }}"
    assert not (out / "README.md").exists()
    assert (out / "generation_config.json").is_file()
    assert "somewhere" not in (out / "config.json").read_text()
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_a_tokenizer_in_other_files_is_read_and_saved(tmp_path: Path) -> None:
    """`vocab.txt` and `emoji.json` are of GPT-NeoX-Japanese and Chinese-CLIP, `spiece.model` of SigLIP and GPT-SW3."""
    source = save_tiny(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "GPTNeoXJapaneseTokenizer"}')
    letters = "\n".join(("<|endoftext|>", "<|startoftext|>", "<SP>", "a", "b", *(f"<|byte{n}|>" for n in range(256))))
    contents = {"vocab.txt": letters, "emoji.json": '{"emoji": {}, "emoji_inv": {}}', "spiece.model": "not read"}
    for name, content in contents.items():
        (source / name).write_text(content)
    assert load_tokenizer(source)("ab")["input_ids"] == [3, 4]
    save_whole(source, tmp_path / "out")
    assert contents.items() <= {path.name: path.read_text() for path in (tmp_path / "out").glob("[!m]*")}.items()
    assert load_tokenizer(tmp_path / "out")("ab")["input_ids"] == [3, 4]


def test_no_file_of_a_known_tokenizer_is_left_out() -> None:
    names = TOKENIZER_MAPPING_NAMES.items()
    classes = (tokenizer_class_from_name(name) for family, name in names if name and family in FAMILIES)
    read = {file for one in classes if one is not None for file in one.vocab_files_names.values()}
    assert {"tokenizer.model", "vocab.txt"} <= read <= {*CARRIED_FILES}


def test_a_tokenizer_of_sentencepiece_alone_is_read_and_saved(tmp_path: Path) -> None:
    source, written = save_tiny(tmp_path / "source"), io.BytesIO()
    for path in source.glob("tokenizer*"):
        path.unlink()
    text, silent = ["a flock of sheep and a dog"] * 50, 3
    SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=written, vocab_size=40, model_type="bpe", minloglevel=silent
    )
    (source / "tokenizer.model").write_bytes(written.getvalue())
    ids = load_tokenizer(source)("a dog")["input_ids"]
    save_whole(source, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert (tokenizer("a dog")["input_ids"], tokenizer.decode(ids)) == (ids, "a dog")


def save_whole(source: Path, out: Path) -> None:
    save_model(load_model(source, dtype=torch.float32, device="cpu"), out, source=source)


def save_by_block(source: Path, out: Path) -> None:
    out.mkdir()
    lazy = load_lazily(source, dtype=torch.float32, device="cpu")
    save_block_by_block(lazy, out, source=source, removed=[], change=lambda *_: None)


_LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("write", [save_whole, save_by_block])
@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("llama", {"rope_theta": 500.0, "rope_scaling": _LINEAR, "torch_dtype": "float32"}),
        ("gemma3", {"rope_theta": 500.0, "rope_local_base_freq": 90.0, "rope_scaling": _LINEAR}),
        ("neox-parallel", {"rotary_pct": 0.5, "rotary_emb_base": 500}),
        ("qwen3-moe", {"rope_theta": 500.0, "num_experts": 4, "scoring_func": "softmax", "topk_method": "greedy"}),
    ],
)
def test_what_reads_the_older_config_of_a_model_reads_that_of_its_result(
    tmp_path: Path, write: Callable[[Path, Path], None], name: str, older: dict[str, object]
) -> None:
    """MLX, transformers 4 and others know no `rope_parameters`, and would take their defaults without a message."""
    path = save_tiny(tmp_path / "source", variant=BY_NAME[name]) / "config.json"
    config = json.loads(path.read_text())
    newer = ("rope_parameters", "dtype", "num_local_experts")
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in newer} | older))
    write(path.parent, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert older.items() <= saved.items()
    assert load_config(tmp_path / "out").rope_parameters == load_config(path.parent).rope_parameters


def result_of(directory: Path, model_type: str, *, older: dict[str, object], without: str, **sizes: object) -> Fields:
    """The config of a result without block 1, of a source whose own has the keys `older` and not those in `without`."""
    fields = {**tiny_models.fitting_sizes(model_type), **sizes}
    tiny_models.built(tiny_models.tiny_config(model_type, **fields)).save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    part = config.pop("text_config", {})
    plain = {name: value for name, value in {**part, **config}.items() if name not in without.split()}
    path.write_text(json.dumps(plain | older))
    model = load_model(directory, dtype=torch.float32, device="cpu")
    remove_blocks(resolve(model), [1])
    save_model(model, directory / "out", source=directory)
    stored_weights(directory / "out")
    saved: Fields = json.loads((directory / "out" / "config.json").read_text())
    return saved


@pytest.mark.parametrize(
    ("model_type", "older"),
    [
        ("afmoe", {"n_group": 1, "topk_group": 1, "route_norm": False, "score_func": "sigmoid"}),
        ("apertus", {"mlp_bias": False, "post_norm": False, "qk_norm": True}),
    ],
)
def test_keys_without_which_others_load_no_model(model_type: str, older: Fields, tmp_path: Path) -> None:
    """vLLM asks for those of AFMoE, MLX for those of Apertus; classes of transformers 5 have none of them."""
    assert older.items() <= result_of(tmp_path, model_type, older=older, without="").items()


@pytest.mark.parametrize(
    ("model_type", "older", "without"),
    [
        ("mimo_v2_flash", {"hybrid_layer_pattern": [0, 1, 1, 1, 1, 0]}, "layer_types"),
        ("mimo_v2_flash", {"moe_layer_freq": [0, 1, 1, 1, 1, 1], "swa_rope_theta": 500.0}, "mlp_layer_types"),
        ("exaone_moe", {"is_moe_layer": [False, False, True, True, True, True]}, ""),
        ("minimax_m3_vl_text", {"moe_layer_freq": [1, 1, 1, 1, 1, 1]}, "mlp_layer_types"),
    ],
)
def test_flags_of_blocks_are_cut_as_the_list_of_their_kinds(
    model_type: str, older: Fields, without: str, tmp_path: Path
) -> None:
    """vLLM, SGLang and MLX read these, and no words."""
    saved = result_of(tmp_path, model_type, older=older, without=without)
    for name, value in older.items():
        assert saved.get(name) == ([*value[:1], *value[2:]] if isinstance(value, list) else value)


_MROPE = {"type": "mrope", "mrope_section": [2, 2, 2]}


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_older_names_of_a_part_whose_fields_stand_beside_the_others(model_type: str, tmp_path: Path) -> None:
    """As in the files of both: transformers 4 takes rotary positions from the part that the result has."""
    older: Fields = {"rope_theta": 500.0, "rope_scaling": _MROPE}
    saved = result_of(tmp_path, model_type, older=older, without="rope_parameters layer_types")
    part = saved["text_config"]
    assert isinstance(part, dict)
    assert older.items() <= part.items()
    assert part["num_hidden_layers"] == tiny_models.BLOCKS - 1


def test_kinds_of_blocks_keep_the_words_of_the_original(tmp_path: Path) -> None:
    """Granite 4's are those that transformers 4, MLX and converters to GGUF know; transformers 5 has others."""
    older: Fields = {"layer_types": ["mamba", "mamba", "attention", "mamba", "attention", "mamba"]}
    saved = result_of(tmp_path, "granitemoehybrid", older=older, without="")
    assert saved["layer_types"] == ["mamba", "attention", "mamba", "attention", "mamba"]
    assert load_config(tmp_path / "out").layer_types[:2] == ["linear_attention", "full_attention"]


@pytest.mark.parametrize(
    ("model_type", "older"), [("mamba2", {"time_step_limit": [0.0, float("inf")]}), ("granitemoehybrid", {})]
)
def test_a_number_without_end_is_written_as_the_original_has_it(model_type: str, older: Fields, tmp_path: Path) -> None:
    saved = result_of(tmp_path, model_type, older=older, without="time_step_limit")
    assert saved.get("time_step_limit") == older.get("time_step_limit")
    assert load_config(tmp_path / "out").time_step_limit == load_config(tmp_path).time_step_limit


def test_a_nemotron_has_its_pattern_and_the_number_of_its_blocks(tmp_path: Path) -> None:
    """Both are properties of its class, which are not saved; SGLang and llama.cpp read nothing else."""
    older: Fields = {"hybrid_override_pattern": "MM*E-*", "num_hidden_layers": 6}
    saved = result_of(tmp_path, "nemotron_h", older=older, without="layers_block_type")
    assert (saved["hybrid_override_pattern"], saved["num_hidden_layers"]) == ("M*E-*", 5)
    assert "layers_block_type" not in saved
    assert len(load_config(tmp_path / "out").layers_block_type) == 5


@pytest.mark.parametrize(
    ("model_type", "kinds", "first"),
    [
        ("glm4_moe_lite", ["dense", "dense", "sparse", "sparse", "sparse", "sparse"], 1),
        ("glm4_moe_lite", ["dense", "dense", "sparse", "dense", "sparse", "sparse"], None),
        ("exaone_moe", ["dense", "dense", "sparse", "sparse", "sparse", "sparse"], 1),
        ("solar_open", None, 0),
        ("deepseek_v3", None, 1),
    ],
)
def test_where_experts_begin_is_said_as_in_the_original(
    model_type: str, kinds: object, first: int | None, tmp_path: Path
) -> None:
    """vLLM, SGLang and MLX ask for these. Where dense blocks are not the first ones, no number says so."""
    older: Fields = {"moe_layer_freq": 1, "first_k_dense_replace": 2 * (first or 0), "rope_scaling": None}
    changes: Fields = {} if kinds is None else {"mlp_layer_types": kinds}
    saved = result_of(tmp_path, model_type, older=older, without="", **changes)
    assert saved.get("first_k_dense_replace") == first
    assert (saved["moe_layer_freq"], saved["rope_scaling"]) == (1, None)


@pytest.mark.parametrize("write", [save_whole, save_by_block])
def test_every_file_has_the_same_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, Path], None]
) -> None:
    """Several files of weights, their index and the tokenizer: all as anybody's new file, whatever wrote them."""
    monkeypatch.setattr(save, "FILE_BYTES", 20_000)
    source = save_tiny(tmp_path / "source")
    (source / "tokenizer.json").chmod(0o600)
    before = os.umask(0o027)
    try:
        write(source, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert len([name for name in modes if name.endswith(".safetensors")]) > 2
    assert "model.safetensors.index.json" in modes
    assert set(modes.values()) == {0o640}


def test_which_blocks_stay() -> None:
    assert kept_blocks(6, [2, 4]) == [0, 1, 3, 5]


def test_a_wrong_number_of_blocks_and_a_value_that_is_not_a_number(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model")
    with pytest.raises(VerificationFailed, match="has 6 blocks, not 5"):
        verify_saved(directory, dtype=torch.float32, blocks=5, prompt=PROMPT, device="cpu")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][1, 2] = float("nan")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationFailed, match=r"saved model cannot be used: .*\.3\.mlp\.up_proj\.weight in .* NaN"):
        verify_saved(directory, dtype=torch.float32, blocks=BLOCKS, prompt=PROMPT, device="cpu")


def test_a_model_that_finds_every_token_as_likely(tmp_path: Path) -> None:
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    save_tiny(tmp_path)
    model.save_pretrained(tmp_path)
    assert verify_saved(tmp_path, dtype=torch.float32, blocks=BLOCKS, prompt=PROMPT, device="cpu") == 0


def test_a_model_that_works_is_verified_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    transformers_logging.warning_once.cache_clear()  # it may have warned in an earlier test
    verify_saved(save_tiny(tmp_path / "model"), dtype=torch.float32, blocks=BLOCKS, prompt=PROMPT, device="cpu")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("loading", "dtype", "opened"),
    [
        (Loading.WHOLE, torch.float32, [torch.float32]),
        (Loading.WHOLE, torch.bfloat16, [torch.float32]),
        (Loading.BLOCKWISE, torch.bfloat16, [torch.bfloat16]),
    ],
)
def test_cache_slots_that_are_not_renumbered_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loading: Loading, dtype: torch.dtype, opened: list[torch.dtype]
) -> None:
    """The check that the surgery relies on: two blocks that share a slot read each other's keys (pitfall 2).

    Block by block in the dtype alone: in float32 the weights take twice the memory.
    """
    directory = save_tiny(tmp_path / "model", dtype=dtype)
    name = "load_model" if loading is Loading.WHOLE else "load_lazily"
    load, dtypes = getattr(lazy_model, name), list[torch.dtype]()

    def load_misnumbered(*arguments: object, **options: object) -> object:
        model = load(*arguments, **options)
        model.model.layers[3].self_attn.layer_idx = 2
        dtypes.append(model.dtype)
        return model

    monkeypatch.setattr(lazy_model, name, load_misnumbered)
    with pytest.raises(VerificationFailed, match="with and without cache"):
        verify_saved(directory, dtype=dtype, blocks=BLOCKS, prompt=PROMPT, device="cpu", loading=loading)
    assert dtypes == opened


@pytest.mark.parametrize(("noise", "passes"), [(0.15, True), (1.2, False)])
def test_rounding_in_bfloat16_is_distinguished_from_a_wrong_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float, passes: bool
) -> None:
    """Logits of a model that pruning has left without sense move by more than a tenth of their spread."""
    whole = torch.randn(4, 260, generator=torch.Generator().manual_seed(0))
    off = {torch.float32: 0.0, torch.bfloat16: noise}

    def logits(model: PreTrainedModel, start: torch.Tensor, *, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        return whole + off[model.dtype] * whole.flip(0), whole

    monkeypatch.setattr(save, "_logits", logits)
    source = save_tiny(tmp_path / "model")
    with nullcontext() if passes else pytest.raises(VerificationFailed, match="of their standard deviation in torch"):
        difference = verify_saved(source, dtype=torch.bfloat16, blocks=BLOCKS, prompt=PROMPT, device="cpu")
        assert 0.1 < difference < 0.3


@pytest.mark.parametrize(
    ("value", "place", "dtype"),
    [(float("nan"), 0, torch.float32), (float("inf"), 2**19, torch.bfloat16), (-float("inf"), -1, torch.float16)],
)
def test_every_value_is_looked_at(value: float, place: int, dtype: torch.dtype) -> None:
    values = torch.zeros(3, 2**19, dtype=dtype)
    assert all_finite(values)
    assert all_finite(values[:0])
    values.view(-1)[place] = value
    assert not all_finite(values)
