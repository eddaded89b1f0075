"""`replaceme evaluate`: measure a model directory on a text."""

from pathlib import Path

from replaceme_core.admission.model_directory import read_outline
from replaceme_core.calibration.packing import encode, pack
from replaceme_core.calibration.sources import documents
from replaceme_core.calibration_spec import CPU_CALIBRATION, CalibrationSource
from replaceme_core.errors import CalibrationTooSmall, InvalidInput
from replaceme_core.evaluation.measure import Subject, measure
from replaceme_core.models.device import make_deterministic, resolve_compute
from replaceme_core.models.load import load_model, load_tokenizer, stored_weights
from replaceme_core.runner.messages import EvaluateRequest
from replaceme_core.spec import ComputeSpec


def evaluate(request: EvaluateRequest) -> dict[str, float | int | str]:
    """Perplexity, size and speed on the first `samples` full sequences of the text, which do not overlap.

    Raises `InvalidInput` for a missing text, `CalibrationTooSmall` for a short one, and the errors of loading a model.
    """
    compute = resolve_compute(
        ComputeSpec(device=request.device, dtype=request.dtype, batch_size=None, threads=request.threads)
    )
    dtype = make_deterministic(compute)
    directory, text = Path(request.model_directory), Path(request.text_path)
    if not text.is_file():
        raise InvalidInput(f"there is no file {text}", field="text", value=str(text))
    read_outline(directory)
    stored_weights(directory)
    tokenizer = load_tokenizer(directory)
    length = request.max_length or CPU_CALIBRATION[1]
    source = CalibrationSource(dataset=f"file:text{text.suffix if text.suffix == '.jsonl' else '.txt'}")
    encoded = encode(documents(source, text), tokenizer, running_text=text.suffix != ".jsonl")
    packed = pack(encoded, tokenizer, length=length, limit=request.samples)
    sequences = packed.sequences
    if len(sequences) < request.samples:
        advice = f", or ask for at most {len(sequences)} samples" if len(sequences) else ""
        raise CalibrationTooSmall(
            f"the text has {packed.tokens} tokens, which fill {len(sequences)} sequences of {length}; "
            f"{request.samples} are needed: give more text{advice}",
            field="samples",
            value=request.samples,
        )
    model = load_model(directory, dtype=dtype, device=compute.device)
    (measurement,) = measure([Subject(name=directory.name, model=model, directory=directory)], sequences)
    return measurement.as_dict()
