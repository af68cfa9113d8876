"""Models by name or folder: read, checked and built; tiny ones with random weights."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from proximo.disk import check_regular, read
from proximo.errors import UsageError, explained
from proximo.language.adapters import Adapter, apply_adapter, read_adapter
from proximo.language.config import ModelConfig, TrainingConfig
from proximo.language.examples import Limit
from proximo.language.model import LanguageModel, check_fit, context, transformers
from proximo.language.tokenizer import declared_ends
from proximo.run.folder import RunFolder

END, UNKNOWN = "<end>", "<unknown>"
"""Tokens of a tiny model that are no symbol of the data."""
DROPPING = ", or leave such rows out by run.overlong drop"


@dataclass(frozen=True)
class Blueprint:
    """Tokenizer and configuration of a model whose weights are not loaded yet."""

    tokenizer: Any  # of transformers
    config: Any
    weights: Path | LanguageModel | None  # their folder; None: random
    generation: Any = None  # its settings; None: derived from the configuration
    adapter: Adapter | None = None  # to be merged into the weights

    @property
    def ends(self) -> list[int]:
        """Ids that its generation settings declare as ends of a text."""
        kind = transformers().GenerationConfig
        settings = self.generation or kind.from_model_config(self.config)
        return declared_ends(settings, len(self.tokenizer))

    def limit(self, run: TrainingConfig) -> Limit:
        """Maximum length of the rows of data."""
        return Limit(context(self.config), run.max_length, run.overlong == "drop", DROPPING)

    def build(self, seed: int, *, random: bool = False) -> LanguageModel:
        """The model. random: with random weights, because a checkpoint holds the real ones."""
        if isinstance(self.weights, LanguageModel):
            return self.weights.merged()
        with self._loading():
            if self.weights is None or random:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    net = self._random()
                if self.generation is not None:
                    net.generation_config = self.generation
                return LanguageModel(net.float(), self.tokenizer)
            net = transformers().AutoModelForCausalLM.from_pretrained(
                self.weights,
                **UNTRUSTED,
                use_safetensors=True,  # other files of weights run code when they are loaded
                adapter_kwargs={"subfolder": secrets.token_hex()},  # peft would import code by name
                dtype=torch.float32,
            )
            if self.adapter:
                apply_adapter(net, self.adapter)
            lm = LanguageModel(net, self.tokenizer)
            if not lm.causal:
                raise UsageError(
                    f"the model {self.weights} is a {type(net).__name__} that reads later tokens "
                    "too: give a causal language model"
                )
        return lm

    def _random(self) -> Any:
        made = transformers().AutoModelForCausalLM
        return made.from_config(self.config, trust_remote_code=False)

    def _loading(self) -> AbstractContextManager[None]:
        """Raises `UsageError` in place of whatever a forged file raises."""
        return explained(f"the model {self.weights or 'that is asked for'} cannot be loaded")

    def check_size(self, max_bytes: int) -> None:
        """Refuse, before allocating memory, a model larger than this. Raises `UsageError`."""
        with self._loading(), torch.device("meta"):
            net = self._random()
        if (needed := 4 * sum(x.numel() for x in net.parameters())) > max_bytes:
            raise UsageError(
                f"the model {self.weights} takes {needed:,} bytes by its config.json, but the "
                f"checkpoints of its run have {max_bytes:,}"
            )


def blueprint(config: ModelConfig, texts: Iterable[str]) -> Blueprint:
    """The model that `model.path` names. texts: give a tiny model its vocabulary."""
    if config.path == "tiny":
        return _tiny_blueprint(config, texts)
    folder = Path(config.path)
    if RunFolder(folder).config_file.is_file():
        folder = folder / "model"
        if not any(folder.glob("*.safetensors")):
            raise UsageError(
                f"the run {config.path} has no model to begin with: a run of sft or ppo has one "
                f"once it has finished (proximo lm resume {config.path})"
            )
    return read_blueprint(folder if folder.is_dir() else config.path)


UNTRUSTED: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments for a folder of unknown origin: fetch nothing, and run no code from it."""
MAX_BYTES = {"config.json": 2**20, ".json": 2**26, ".safetensors": 2**62}
"""Size of a model's file at most, by its name or suffix; of others `MAX_OTHER_BYTES`."""
MAX_OTHER_BYTES = 2**24
REPEATED, MOST_REPEATED = re.compile("^n_layer$|(layers|experts|labels|depth)$"), 2**12
"""Settings that count the parts of a model, each of which takes time to build, and their bound."""
READ = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe", ".safetensors")
"""Suffixes of the files that are read; others in a folder are ignored."""


def read_blueprint(folder: Path | str) -> Blueprint:
    """The model of a folder, or of a name that transformers has cached. Raises `UsageError`."""
    library = transformers()
    try:
        place = Path(folder)
        if not place.is_dir():  # a name: the folder in the cache
            place = Path(library.utils.cached_file(str(folder), "config.json", **UNTRUSTED)).parent
        _check_files(place)
        settings = library.AutoConfig.from_pretrained(place, **UNTRUSTED)
        tokenizer = library.AutoTokenizer.from_pretrained(place, **UNTRUSTED)
        check_fit(tokenizer, settings.get_text_config().vocab_size)
        if getattr(settings.get_text_config(), "num_hidden_layers", 1) < 1:
            raise ValueError("it has no layers")
    except UsageError:
        raise
    except Exception as error:  # a forged file may raise anything
        why = "no such folder, and nothing is stored by that name; nothing is fetched"
        if Path(folder).is_dir():
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"there is no model {str(folder)!r} ({why}): give a folder that transformers reads, a "
            "run of proximo lm, or tiny"
        ) from error
    generation = _generation(place, len(tokenizer))
    return Blueprint(tokenizer, settings, place, generation, read_adapter(place))


def _generation(folder: Path, vocabulary: int) -> Any:
    """Settings of generation_config.json, if the model has one. Raises `UsageError`."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    with explained(f"{file} cannot be read"):
        settings = transformers().GenerationConfig.from_pretrained(folder, local_files_only=True)
        declared_ends(settings, vocabulary)
    return settings


def _check_files(folder: Path) -> None:
    """Check all files that transformers may read. Raises `OSError` and `UsageError`."""
    for file in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if file.is_dir():
            continue
        limits = (MAX_BYTES.get(end) for end in (file.name, file.suffix))
        most = next((limit for limit in limits if limit), MAX_OTHER_BYTES)
        check_regular(file, most if file.suffix in READ else math.inf)
    settings = json.loads(read(folder / "config.json", MAX_BYTES["config.json"]))
    for name, value in _settings(settings):
        wrong = ""
        if name == "quantization_config" and value:
            wrong = "the model is quantized: take one that is not"
        elif name.endswith("_implementation") and "/" in str(value):
            wrong = "it names code to fetch: take that out of it"
        elif type(value) is int and REPEATED.search(name) and value > MOST_REPEATED:
            wrong = f"at most {MOST_REPEATED:,} are made"
        if wrong:
            what = f"config.json of the model {folder} has {name} {value!r:.80}"
            raise UsageError(f"{what}: {wrong}")


def _settings(part: Any) -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration and of its nested ones."""
    if isinstance(part, dict):
        yield from part.items()
        part = list(part.values())
    for inner in part if isinstance(part, list) else ():
        yield from _settings(inner)


def load_model(path: str | Path) -> LanguageModel:
    """The language model of a folder, a run, or a cached name. Raises `UsageError`."""
    return blueprint(ModelConfig(path=str(path)), ()).build(0)


def tiny(texts: Iterable[str], *, seed: int = 0, **settings: Any) -> LanguageModel:
    """A small GPT-2 with random weights over the symbols of texts. settings: of `ModelConfig`."""
    return _tiny_blueprint(ModelConfig(**settings), texts).build(seed)


PATTERNS = {"characters": r"[\s\S]", "words": r"\w+|\s|[^\w\s]"}


def _tiny_blueprint(config: ModelConfig, texts: Iterable[str]) -> Blueprint:
    library = transformers()
    import tokenizers

    pattern = PATTERNS[config.symbols]
    symbols = sorted({symbol for text in texts for symbol in re.findall(pattern, text)})
    vocabulary = {symbol: i for i, symbol in enumerate([END, UNKNOWN, *symbols])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, unk_token=UNKNOWN, model_max_length=config.context
    )
    settings = library.GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=config.context,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Blueprint(tokenizer, settings, None)
