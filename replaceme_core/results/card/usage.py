"""What the card says of using the model: how, with which limits, under which terms, and how to make it again."""

from replaceme_core.results.base_card import OTHER
from replaceme_core.results.card.again import as_command, as_request
from replaceme_core.results.card.words import Names
from replaceme_core.results.outcome import RunOutcome

FEW_TOKENS = 20_000


def use(outcome: RunOutcome, names: Names) -> str:
    """In transformers and in vLLM. A chat model is asked, a base model continues."""
    if outcome.is_chat:
        ask = (
            'messages = [{"role": "user", "content": "Why is the sky blue?"}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
            ")"
        )
        offline = 'llm.chat([{"role": "user", "content": "Why is the sky blue?"}])'
    else:
        ask = 'inputs = tokenizer("The capital of France is", return_tensors="pt")'
        offline = 'llm.generate("The capital of France is")'
    transformers = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'name = "{names.place}"\n'
        "tokenizer = AutoTokenizer.from_pretrained(name)\n"
        'model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")\n'
        f"{ask}\n"
        "output = model.generate(**inputs, max_new_tokens=100)\n"
        'print(tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )
    vllm = f'from vllm import LLM\n\nllm = LLM(model="{names.place}")\nprint({offline}[0].outputs[0].text)'
    return (
        "With [transformers](https://github.com/huggingface/transformers), without remote code:\n\n"
        f"```python\n{transformers}\n```\n\n"
        "With [vLLM](https://docs.vllm.ai), where it supports the original; `vllm serve` takes the same name:\n\n"
        f"```python\n{vllm}\n```"
    )


def limits(outcome: RunOutcome, names: Names) -> str:
    """What a user must expect."""
    items = [
        "Removed layers are knowledge lost: facts, rare languages and long reasoning suffer more than fluent text. "
        "Nothing was trained afterwards; a short fine-tuning usually wins back a part.",
        f"It has the biases and the intended uses of {names.short}, and no safety behaviour of it was tested again.",
    ]
    if outcome.comparison is None:
        items.append("Its quality was not measured.")
    elif outcome.texts:
        worst = max(outcome.texts, key=lambda one: one.ratio)
        items.append(
            f"Of the texts above it is worst on {names.text(worst.name)}: {worst.ratio:.2f} times the perplexity of "
            "the original. On text of other kinds it may be worse still."
        )
        few = min(one.tokens for one in outcome.texts)
        if few < FEW_TOKENS:
            items.append(f"The figures rest on few tokens ({few:,} on one text): read them as estimates.")
        if not outcome.tasks:
            items.append("No benchmark of tasks was run.")
    if outcome.irregular:
        items.append(
            f"The kinds of its layers ({', '.join(f'`{name}`' for name in outcome.irregular)} in `config.json`) do not "
            "follow a fixed step. transformers reads the list. Converters to GGUF, MLX and ONNX that compute the kinds "
            "from the number of the layer give a model that runs and is wrong, without a message. With "
            "`compute.pattern_safe` only layers are removed without which the step stays."
        )
    return "\n".join(f"- {item}" for item in items)


def make_again(outcome: RunOutcome, names: Names) -> str:
    """The request or the command; and the check that compares the tensors."""
    version, spec = outcome.provenance.code["version"], outcome.spec_of_result
    if names.repository is not None:
        how = f"This request to a ReplaceMe service (`POST /jobs`) makes it again:\n\n```json\n{as_request(spec)}\n```"
        source = ""
    else:
        how = f"This command makes it again:\n\n```bash\n{as_command(spec)}\n```"
        source = " --model MODEL_DIR"
    return (
        f"Made with `replaceme` {version}. {how}\n\n`replaceme.json` beside the weights holds the whole specification, "
        "checksums of model, text and tokens, versions, hardware, times and measurements. With it\n\n"
        f"```bash\nreplaceme reproduce {names.place}{source}\n```\n\n"
        "runs everything again and compares the tensors. The same versions on the same hardware give the same bytes."
    )


def terms(outcome: RunOutcome, names: Names) -> str:
    """What the licence follows from."""
    base = outcome.base_card
    files = f" Its files are here too: {', '.join(f'`{name}`' for name in base.terms)}." if base.terms else ""
    if base.licence is None:
        return (
            f"{names.short} states no licence, so none can be stated here: ask its authors before you use this model."
        )
    name = base.name or base.licence if base.licence == OTHER else base.licence
    return f"That of {names.short}: `{name}`.{files}"
